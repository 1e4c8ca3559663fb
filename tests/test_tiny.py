"""The tiny random model of the smoke recipes."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from ccpo.tasks.arithmetic import build_tokenizer
from ccpo.tasks.tiny import build_tiny_model


def test_folder_loads_with_the_tokenizer_that_was_saved(tmp_path):
    """AutoTokenizer puts its own class in for some architectures, which would change the token ids."""
    folder = build_tiny_model(tmp_path / "tiny", seed=1)
    tokenizer, text = AutoTokenizer.from_pretrained(folder), "12 + 3 = \\boxed{15}, isn't it?\n"
    assert tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "1+1"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).endswith("assistant\n")
    assert sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()) < 100_000
