"""The embedded default: two-step arithmetic and two tiny warm-started policies, with nothing to download.

A problem is `(a+b)*c`. Its two steps depend on each other: the Thinker can do the first (`7+12=19`), the Solver the
second (`19*4=\\boxed{76}`). Both policies learn their facts by supervised training on demonstrations that are honest
but imperfect: some thoughts add the wrong pair, say nothing useful or leak an answer; some answers copy the number of
the thought or ignore it. So the warm-started team is right some of the time and knows more than it shows, which is
what reinforcement learning needs.

Which problems are held out is a property of the problem, not of a seed: those with `(min(a, b) + c) % 5` 0 or 2 whose
sum can be had in another way. `(7+12)*4` and `(12+7)*4` are therefore always on the same side, and no sum and no
product of a held-out problem is without training problems that have it: the facts are shared, the problems are not.
"""

import itertools
import logging
import os
import random
import re
import string
import zlib
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from ccpo.team.topology import ThinkSolve

logger = logging.getLogger(__name__)

THINKER_PROMPT = "{problem} Thought: "
SOLVER_PROMPT = "{problem} Thought: {thought} Answer: "
SOLO_PROMPT = "{problem} Answer: "
ROLES = ("thinker", "solver")

TERMS = range(1, 16)  # a and b
FACTORS = range(2, 10)  # c
REMARKS = ("this looks hard", "this looks easy", "no idea yet")

# Shares of the demonstrations: what a Thinker writes, and what a Solver does with a thought that holds a number. With
# no number to use (a remark, a leak that was removed, no thought at all) the Solver can only guess.
THOUGHT_SHARES = {"right": 0.5, "wrong_pair": 0.22, "remark": 0.18, "leak": 0.1}
ANSWER_SHARES = {"work": 0.5, "copy": 0.2, "guess": 0.3}
GUESS_SHARES = {"right": 0.55, "only_sum": 0.25, "only_product": 0.2}
SOLO_SHARE = 0.3  # of the Solver's demonstrations: the problem alone

_WORDS = [" Thought: ", " Answer: ", "\\boxed{"] + sorted({word for remark in REMARKS for word in remark.split()})
_SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Build the tokenizer of both policies: one token per number up to 299, per word of the templates and the remarks,
    and per printable ASCII character. Decoding gives the text back exactly; only other characters become `<unk>`.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: padding on the left, no chat template, nothing added to the text.
    """
    numbers = [str(number) for number in range(300)]
    characters = string.ascii_letters + string.punctuation + " \t\n"
    vocabulary = [*_SPECIALS, *numbers, *_WORDS, *characters]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    words = "|".join(re.escape(word) for word in sorted(_WORDS, key=len, reverse=True))
    pattern = Regex(rf"{words}|[12]\d\d|[1-9]\d|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_policy(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """
    Build a policy of about a million parameters (871,168), float32, with random weights.

    The architecture is Llama: beside a Qwen2 config, `AutoTokenizer` would load the saved tokenizer as a
    `Qwen2Tokenizer`, which splits text in its own way.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): gives the vocabulary and the special tokens.
        seed (`int`, defaults to 0): seed of the weights; the global generator is left as it was.

    Returns:
        [`~transformers.LlamaForCausalLM`]
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=896,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _text(a: int, b: int, c: int) -> str:
    return f"({a}+{b})*{c}"


def _held_out(a: int, b: int, c: int) -> bool:
    # Neighbours in min(a, b) are never both held out, so one of two pairs with the same sum trains its product by c.
    several_pairs = sum(TERMS[:2]) < a + b < sum(TERMS[-2:])
    return several_pairs and (min(a, b) + c) % 5 in (0, 2)


def _problems(split: str) -> list[tuple[int, int, int]]:
    """The `(a, b, c)` of a split, in a fixed shuffled order: by the CRC-32 of the problem's text."""
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    problems = itertools.product(TERMS, TERMS, FACTORS)
    chosen = (problem for problem in problems if _held_out(*problem) == (split == "test"))
    return sorted(chosen, key=lambda problem: zlib.crc32(_text(*problem).encode()))


def build_dataset(split: str = "train", size: int | None = None) -> Dataset:
    """
    The problems of a split, always the same and in the same order.

    Args:
        split (`str`, defaults to `"train"`): `"train"` (1,098 problems) or `"test"` (702, held out).
        size (`int`, *optional*): take the first `size` problems; all of them by default.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt`, e.g. `"(7+12)*4"`, and `solution`, e.g. `"76"`.
    """
    problems = _problems(split)
    if size is not None and not 0 < size <= len(problems):
        raise ValueError(f"`size` must be between 1 and {len(problems)} for the {split} split, got {size}.")
    problems = problems[:size]
    return Dataset.from_dict(
        {
            "prompt": [_text(*problem) for problem in problems],
            "solution": [str((a + b) * c) for a, b, c in problems],
        }
    )


def _pick(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _thought(rng: random.Random, a: int, b: int, c: int) -> tuple[str, int | None]:
    """A Thinker's demonstration, and the number that a Solver finds in it once the leak guard has passed."""
    kind = _pick(rng, THOUGHT_SHARES)
    if kind == "right":
        return f"{a}+{b}={a + b}", a + b
    if kind == "wrong_pair":
        return f"{a}+{c}={a + c}", a + c
    if kind == "remark":
        return rng.choice(REMARKS), None
    return f"\\boxed{{{rng.choice([a + b, (a + b) * c])}}}", None


def _answer(rng: random.Random, a: int, b: int, c: int, number: int | None) -> str:
    """A Solver's demonstration; `number` is what the thought says the first step gives. To guess is to do that step
    in one's head and carry on, or to stop half way: at the sum, or at a product that forgets the sum."""
    kind = "guess" if number is None else _pick(rng, ANSWER_SHARES)
    if kind == "guess":
        kind = _pick(rng, GUESS_SHARES)
        number = a + b
    if kind in ("work", "right"):
        return f"{number}*{c}=\\boxed{{{number * c}}}"
    return f"\\boxed{{{b * c if kind == 'only_product' else number}}}"


def demonstrations(role: str, size: int, seed: int = 0) -> Dataset:
    """
    Demonstrations on training problems, in the shares stated at the top of this module.

    A Solver's demonstration follows the number it reads, right or wrong, and reads nothing where the thought was a
    leak, which the leak guard removes.

    Args:
        role (`str`): `"thinker"` or `"solver"`.
        size (`int`): number of demonstrations.
        seed (`int`, defaults to 0): seed of the draws.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt` and `completion`; the trainer adds the end-of-sequence token.
    """
    if role not in ROLES:
        raise ValueError(f"`role` must be one of {ROLES}, got {role!r}.")
    rng = random.Random(f"{role}-{seed}")
    problems, rows = _problems("train"), []
    for _ in range(size):
        a, b, c = rng.choice(problems)
        problem, (thought, number) = _text(a, b, c), _thought(rng, a, b, c)
        if role == "thinker":
            prompt, completion = THINKER_PROMPT.replace("{problem}", problem), thought
        elif rng.random() < SOLO_SHARE:
            prompt, completion = SOLO_PROMPT.replace("{problem}", problem), _answer(rng, a, b, c, None)
        else:
            view = "" if thought.startswith("\\boxed{") else thought
            prompt = SOLVER_PROMPT.replace("{problem}", problem).replace("{thought}", view)
            completion = _answer(rng, a, b, c, number)
        rows.append({"prompt": prompt, "completion": completion})
    return Dataset.from_list(rows)


def warm_start(
    output_dir: str | os.PathLike, seed: int = 0, thinker_steps: int = 300, solver_steps: int = 600, **kwargs
) -> dict[str, str]:
    """
    Train both policies on their demonstrations, each seen once, and save them with their tokenizer.

    With the defaults it takes 40 CPU seconds. Sampled at temperature 1 on the held-out problems, the team is then
    right about 0.35 of the time and the Solver alone 0.23; 0.1 of the thoughts leak; the Solver is right 0.6 of the
    time given a right thought. It would be right 0.9 of the time if both did what half of their demonstrations do.

    Args:
        output_dir (`str` or `os.PathLike`): the policies go to its folders `thinker` and `solver`.
        seed (`int`, defaults to 0): seed of the weights, the demonstrations and their order; sets the global ones too.
        thinker_steps (`int`, defaults to 300): optimizer steps of 32 demonstrations.
        solver_steps (`int`, defaults to 600): optimizer steps of 32 demonstrations.
        kwargs: fields of [`~trl.SFTConfig`] to change, e.g. `disable_tqdm=True`. `use_cpu` is `True` by default; give
            it the later trainer's value, since Accelerate keeps one device per process.

    Returns:
        `dict[str, str]`: role -> folder, loadable by `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`.
    """
    from trl import SFTConfig, SFTTrainer  # only here: slow to import, and not needed for the problems

    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 20,
        "adam_beta2": 0.98,
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "max_length": None,
        "logging_steps": 100,
        "save_strategy": "no",
        "report_to": "none",
        **kwargs,
    }
    paths = {}
    for role, steps in zip(ROLES, (thinker_steps, solver_steps), strict=True):
        tokenizer = build_tokenizer()
        paths[role] = os.path.join(output_dir, role)
        trainer = SFTTrainer(
            model=build_policy(tokenizer, seed),
            args=SFTConfig(output_dir=paths[role], seed=seed, **settings),
            train_dataset=demonstrations(role, 32 * steps, seed),
            processing_class=tokenizer,
        )
        result = trainer.train()
        trainer.save_model(paths[role])
        logger.info("Warm-started the %s: mean loss %.3f, saved to %s", role, result.training_loss, paths[role])
    return paths


def topology() -> "ThinkSolve":
    """The Think-Solve topology with this task's short prompts."""
    from ccpo.team.topology import ThinkSolve

    return ThinkSolve(thinker_prompt=THINKER_PROMPT, solver_prompt=SOLVER_PROMPT, solo_prompt=SOLO_PROMPT)
