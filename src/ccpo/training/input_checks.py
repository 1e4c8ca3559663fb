"""What can be known to be wrong before any model loads: what objects the trainer was given, and its datasets' rows."""

import logging
import math
from collections import Counter
from itertools import islice
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset

from ..cells import kind
from ..rewards import CreditAllocator
from ..team.prompts import problem_text, strip_boxed
from ..team.topology import Topology
from ..verifier.math_verifier import MathVerifier
from .config import MultiAgentGRPOConfig

logger = logging.getLogger(__name__)

GOLDS_READ = 512  # distinct gold answers that the verifier reads before a run, unless it can read none of them
_OF_REWARD_FUNCTIONS = ("prompts", "completions")  # each column is an argument beside these
_READ_BY_TRL = ("chosen", "rejected", "completion", "messages")  # which TRL may take for the prompt's format


def check_objects(args: Any, reward_funcs: Any, topology: Any = None, environment_factory: Any = None) -> None:
    """
    Refuse what is no configuration, no reward function or no topology.

    Args:
        args ([`MultiAgentGRPOConfig`], *optional*), reward_funcs, topology ([`Topology`], *optional*),
        environment_factory (*optional*): the trainer's. An environment may bring the only reward.

    Raises:
        `ValueError`: another configuration, no reward function, or a class where an object of it is meant.
    """
    if args is not None and not isinstance(args, MultiAgentGRPOConfig):
        name = args.__name__ if isinstance(args, type) else type(args).__name__
        raise ValueError(
            f"`args` must be a MultiAgentGRPOConfig, got {name}. Write MultiAgentGRPOConfig(...): it has GRPOConfig's "
            "fields and those of several roles."
        )
    funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    if reward_funcs is None and environment_factory is not None:
        funcs = []
    elif not funcs:
        raise ValueError("`reward_funcs` is empty. Give an allocator, e.g. SharedCredit(), or a reward function.")
    for func in funcs:
        _check_object("reward_funcs", func, "an allocator, e.g. SharedCredit(), or a reward function")
        if isinstance(func, CreditAllocator):
            _check_object(f"outcome` of `{func.__name__}", func.outcome, "a reward function, e.g. MathVerifier()")
    if topology is not None and not isinstance(topology, Topology):
        name = topology.__name__ if isinstance(topology, type) else repr(topology)
        raise ValueError(f"`topology` must be a Topology, got {name}. Give an object, e.g. ThinkSolve() or Solo().")


def _check_object(name: str, given: Any, wanted: str) -> None:
    if isinstance(given, type):
        raise ValueError(f"`{name}` is the class {given.__name__}. Give an object of it: {given.__name__}(...).")
    if not callable(given) and not isinstance(given, str):  # a text is the id of TRL's reward model
        raise ValueError(f"`{name}` must be {wanted}, got {given!r}.")


def datasets_by_name(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """The datasets that were given, by the name that an error gives them."""
    named = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    if isinstance(eval_dataset, dict) and eval_dataset:
        del named["eval_dataset"]
        named |= {f"eval_dataset[{key!r}]": given for key, given in eval_dataset.items()}
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def check_datasets(
    train_dataset: Any,
    eval_dataset: Any,
    args: MultiAgentGRPOConfig,
    allocators: list[CreditAllocator],
    topology: Topology,
) -> None:
    """
    Check the rows of the datasets; of a stream, those of the first generation batch.

    Args:
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): must fill a generation batch.
        eval_dataset (as `train_dataset`, or a `dict` of such, *optional*): to evaluate on.
        args ([`MultiAgentGRPOConfig`]): whose batch is to be filled.
        allocators (`list`): those with a [`MathVerifier`] need gold answers in the column `solution`.
        topology ([`Topology`]): a team needs a problem in every prompt.

    Raises:
        `ValueError`: no such dataset, no rows, too few, a missing column, or a cell that is no prompt or gold answer.
    """
    needed = _rows_at_once(args)
    outcomes = [allocator.outcome for allocator in allocators if isinstance(allocator.outcome, MathVerifier)]
    # A subclass may read another column.
    verifiers = [outcome for outcome in outcomes if type(outcome).__call__ is MathVerifier.__call__]
    if verifiers and args.remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns=True` removes the gold answers, which MathVerifier reads in `solution`. Set it to "
            "False, as is the default."
        )
    for name, dataset in datasets_by_name(train_dataset, eval_dataset).items():
        _check_kind(name, dataset, ["prompt", "solution"] if verifiers else ["prompt"])
        rows = read_rows(dataset, args)
        if name == "train_dataset":
            _check_batch(len(rows), needed, args)
        if len(rows) == 0:
            raise ValueError(f"`{name}` is empty (0 rows). Check its split and filters.")
        images = sorted({"image", "images"} & set(rows[0]))
        if images and not topology.is_solo:
            raise ValueError(
                f"`{name}` has the column {images[0]!r}, and several roles exchange text only: the images would be "
                f"dropped. Remove it, `{name}.remove_columns({images!r})`, or train one role, `topology=Solo()`."
            )
        _check_format(name, rows[0])
        _check_prompts(name, _column(name, rows, "prompt"), topology)
        if verifiers:
            golds = _column(name, rows, "solution")
            # One process reads them for all: near the verifier's time limit they might disagree, and one go on alone.
            found = [_gold_fault(name, golds, verifiers[0]) if PartialState().is_main_process else None]
            if (fault := broadcast_object_list(found)[0]) is not None:
                raise ValueError(fault)


def _rows_at_once(args: MultiAgentGRPOConfig) -> int:
    """What TRL's sampler takes at once: the prompts of a generation batch."""
    return args.generation_batch_size // args.num_generations


def read_rows(dataset: Dataset | IterableDataset, args: MultiAgentGRPOConfig) -> Dataset | list[dict]:
    """What of a dataset is looked at before a run: all rows; of rows made on the fly the first generation batch."""
    made_on_the_fly = isinstance(dataset, IterableDataset) or dataset.format["type"] == "custom"  # set_transform
    return list(islice(dataset, _rows_at_once(args))) if made_on_the_fly else dataset.with_format(None)


def _check_kind(name: str, dataset: Any, columns: list[str]) -> None:
    if isinstance(dataset, dict):
        if not dataset:
            raise ValueError(f"`{name}` is a dict without a dataset. Give one, or leave it out.")
        first = next(iter(dataset))
        raise ValueError(f"`{name}` has the splits {list(dataset)}. Pass one of them: dataset[{first!r}].")
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"`{name}` must be a datasets.Dataset or IterableDataset, got {kind(dataset)}. Make one, e.g. with "
            "Dataset.from_list(rows) or ccpo.data.load_problems."
        )
    if isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"`{name}` is empty (0 rows). Check its split and filters.")
    on_the_fly = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    if taken := sorted(set(_OF_REWARD_FUNCTIONS) & set(dataset.column_names or ())):
        raise ValueError(
            f"`{name}` has the columns {taken}, which are names of a reward function's own arguments. Rename or "
            f"remove them: {name}.remove_columns({taken})."
        )
    for column in columns if dataset.column_names is not None and not on_the_fly else ():
        if column not in dataset.column_names:
            raise _missing(name, column, dataset.column_names)


def _missing(name: str, column: str, columns: list[str]) -> ValueError:
    return ValueError(
        f"`{name}` has no column {column!r}; it has {columns}. Rename it, e.g. with "
        "ccpo.data.load_problems(..., problem_column=..., solution_column=...)."
    )


def _column(name: str, rows: Dataset | list[dict], column: str) -> list:
    """A column's cells; the rows of a stream may not say beforehand which columns they have."""
    if isinstance(rows, Dataset):
        return list(rows[column])
    for row in rows:
        if column not in row:
            raise _missing(name, column, sorted(row))
    return [row[column] for row in rows]


def _check_batch(available: int, needed: int, args: MultiAgentGRPOConfig) -> None:
    """TRL's sampler drops what does not fill a generation batch: with too few prompts, nothing is trained."""
    if available >= needed:
        return
    raise ValueError(
        f"`train_dataset` has {available} prompts, and a generation batch needs {needed}: "
        f"`per_device_train_batch_size={args.per_device_train_batch_size}` x {args.world_size} processes x "
        f"`steps_per_generation={args.steps_per_generation}` = {args.generation_batch_size} rows, "
        f"`num_generations={args.num_generations}` to a prompt. Nothing would be trained. Give more prompts, lower "
        "`per_device_train_batch_size` or `steps_per_generation` (by default `gradient_accumulation_steps`), or raise "
        "`num_generations`."
    )


def _check_prompts(name: str, prompts: list, topology: Topology) -> None:
    """Every prompt is text, or every prompt is chat messages; where a role has a template, each states a problem."""
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str) or (prompt and isinstance(prompt, list)):
            fault = _message_fault(prompt)
        else:
            fault = f"is {kind(prompt)}"
        if fault is None and type(prompt) is not type(prompts[0]):
            fault = f"is {kind(prompt)}, and that of row 0 {kind(prompts[0])}: give only texts or only chat messages"
        if fault is None and topology.prompts:
            fault = _team_fault(prompt)
        if fault is not None:
            raise ValueError(
                f"`{name}`: the prompt of row {i} {fault}. A prompt is a text, or chat messages whose last user "
                "message states the problem; ccpo.data.load_problems makes them."
            )


def _message_fault(prompt: str | list) -> str | None:
    for message in prompt if isinstance(prompt, list) else ():
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"has {message!r:.80} among its messages, which has no `role`"
    return None


def _team_fault(prompt: str | list[dict]) -> str | None:
    try:
        problem = problem_text(prompt)
    except ValueError:
        return f"has no user message with text content: {prompt!r:.200}"
    if not problem.strip():
        return "is empty"
    last = prompt[-1] if isinstance(prompt, list) else {}
    text = last.get("content")
    if last.get("role") == "assistant" and isinstance(text, str) and strip_boxed(text) != text:
        return f"ends with an assistant's answer, {text!r:.80}, which every role would read"
    return None


def _is_chat(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict) and "role" in cell[0]


def _check_format(name: str, row: dict) -> None:
    """TRL takes any of these columns for the row's format, which one differs from run to run."""
    for column in _READ_BY_TRL:
        if column in row and (row[column] == [] or _is_chat(row[column]) != _is_chat(row.get("prompt"))):
            raise ValueError(
                f"`{name}` has a column {column!r} in another format than `prompt`, and TRL may take it for the "
                f"prompt's. Remove it: dataset.remove_columns({column!r})."
            )


def _gold_fault(name: str, golds: list, verifier: MathVerifier) -> str | None:
    """Gold answers are texts that the verifier can read: all unreadable is a fault, some are a warning."""
    for i, gold in enumerate(golds):
        if gold is not None and not isinstance(gold, str):
            return (
                f"`{name}`: the `solution` of row {i} is {kind(gold)}, {gold!r:.80}, and MathVerifier reads text. "
                "Convert it, e.g. with ccpo.data.load_problems(..., solution_column='solution') or "
                "dataset.cast_column('solution', Value('string'))."
            )
    counts = Counter(golds)
    distinct, looked_at, unreadable = list(counts), [], []
    num_parts = math.ceil(len(distinct) / GOLDS_READ)
    for start in range(num_parts):  # each spread over the dataset; the next only while there is nothing to train on
        part = distinct[start::num_parts]
        texts = [gold for gold in part if gold is not None]
        scores = dict(zip(texts, verifier.score(gold=texts, prediction=texts), strict=True))
        looked_at += part
        unreadable += [gold for gold in part if math.isnan(scores.get(gold, math.nan))]
        if len(unreadable) < len(looked_at):
            break
    number = sum(counts[gold] for gold in unreadable)
    examples = ", ".join(repr(gold)[:80] for gold in unreadable[:3])
    if len(unreadable) == len(looked_at):
        return (
            f"`{name}`: MathVerifier can read no gold answer in `solution` ({number} rows), e.g. {examples}. "
            "Nothing could be scored. Name the column of the answers, or use an outcome function that reads them."
        )
    if number:
        logger.warning(
            "`%s`: MathVerifier cannot read the gold answers of %d of %d rows, which will not be scored, e.g. %s.",
            *(name, number, sum(counts[gold] for gold in looked_at), examples),
        )
    return None
