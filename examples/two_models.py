"""
Train a Thinker and a Solver with different architectures and different tokenizers. They exchange plain text.

    accelerate launch examples/two_models.py

The Thinker is the small model of the arithmetic task, with one token per number. The Solver is a Qwen3 with a
byte-level BPE tokenizer, which is learned here.

By default both are prepared for a few steps only and mostly fail. `--warm_start_steps 350 --max_steps 200` makes them
better and takes minutes. For large models, see `recipes/Qwen2.5-1.5B-Instruct+Olmo-3-7B-Instruct`.
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import ModelConfig, SFTConfig, SFTTrainer

from ccpo import MultiAgentGRPOConfig, MultiAgentGRPOTrainer
from ccpo.arguments import TeamArguments
from ccpo.tasks import arithmetic
from ccpo.train import load_models, load_task, parse_arguments

DEFAULTS = ("--output_dir", "outputs/two_models", "--max_steps", "5", "--warm_start_steps", "20")


def build_solver(folder: str, steps: int, args: MultiAgentGRPOConfig) -> None:
    """Put a Qwen3 with a tokenizer of its own into `folder`, trained on the embedded task's demonstrations."""
    demonstrations = arithmetic.demonstrations("solver", 64 * steps, args.seed)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|pad|>", "<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*demonstrations["prompt"], *demonstrations["completion"]], learner)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left", model_max_length=2048
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    settings = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=64,
        num_train_epochs=1,
        learning_rate=4e-3,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        use_cpu=args.use_cpu,
        seed=args.seed,
    )
    trainer = SFTTrainer(Qwen3ForCausalLM(config), settings, train_dataset=demonstrations, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(folder)


def main(team: TeamArguments, args: MultiAgentGRPOConfig, model: ModelConfig) -> None:
    topology, train_dataset, _ = load_task(team, args)
    if team.solver_model is None:
        team.solver_model = str(Path(args.output_dir) / "qwen2_solver")
        build_solver(team.solver_model, team.warm_start_steps or 350, args)
    trainer = MultiAgentGRPOTrainer(
        model=load_models(team, args, model, topology),
        reward_funcs=team.make_credit(),
        args=args,
        train_dataset=train_dataset,
        topology=topology,
    )
    for role, tokenizer in trainer.tokenizers.items():
        policy = type(trainer.model.policies[role]).__name__
        print(f"{role}: {policy}, {len(tokenizer)} tokens, {tokenizer.tokenize('(7+12)*4')}")
    trainer.train()
    trainer.save_model(args.output_dir)
    for role in trainer.roles:
        print(f"{role}: {Path(args.output_dir) / role}")


if __name__ == "__main__":
    main(*parse_arguments(sys.argv[1:], DEFAULTS))
