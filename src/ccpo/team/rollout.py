"""One pass of the team over a batch of problems. The same code serves training, evaluation and the drop-in rewards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..calls import call
from .answers import DEFAULT_READER, AnswerReader
from .completions import completion_text
from .prompts import build_solo_messages, build_solver_messages, build_thinker_messages
from .topology import Role, ThinkSolve

Prompt = str | list[dict]
Generate = Callable[[list[Prompt]], list[str]]


@dataclass
class Episodes:
    """
    What was said, row by row. `n` rows of one thought each, K answers per thought, `m` solo answers.

    Attributes:
        prompts (`list`): the dataset's prompts, length n.
        thoughts (`list[str]`): what the Thinker wrote, length n.
        answers (`list[str]`): the Solver's answers with the thought, length n·K, the K of a thought side by side.
        solos (`list[str]`): the Solver's answers without it, length m.
        solo_rows (`list[int]`): the row whose problem each solo answers, length m.
        role_prompts (`dict[str, list]`): what each role was asked, in the order of its texts (joint only).
        reader ([`~ccpo.team.answers.AnswerReader`]): what the leak guard takes for an answer's place.
    """

    prompts: list[Prompt]
    thoughts: list[str]
    answers: list[str]
    solos: list[str] = field(default_factory=list)
    solo_rows: list[int] = field(default_factory=list)
    role_prompts: dict[str, list[Prompt]] = field(default_factory=dict)
    reader: AnswerReader = DEFAULT_READER

    @property
    def leaked(self) -> list[bool]:
        """Whether each thought stated an answer, which the leak guard took out before the Solver read it."""
        return [self.reader.has(thought) for thought in self.thoughts]

    @property
    def views(self) -> list[str]:
        """The thoughts as the Solver reads them."""
        return [self.reader.strip(thought) for thought in self.thoughts]


def ask(role: str, generate: Generate, prompts: list[Prompt], **options: Any) -> list[str]:
    """
    The role's completions, one per prompt: fewer or more would shift every answer to another problem.

    Args:
        role (`str`): for the messages.
        generate (`Callable`): takes prompts, returns texts (or messages, whose text is taken); asynchronous or not.
        prompts (`list`): texts or chat messages.
        options: more arguments for the generator.

    Returns:
        `list[str]` of the prompts' length.

    Raises:
        `ValueError`: not one completion per prompt. `TypeError`: no list, or of things that are no completions.
    """
    completions = call(generate, prompts, **options)
    if isinstance(completions, str | bytes) or not isinstance(completions, Sequence):
        raise TypeError(
            f"The {role}'s generator returned {completions!r:.80}. It gets a list of prompts and has to return the "
            "list of their completions."
        )
    if len(completions) != len(prompts):
        raise ValueError(f"The {role}'s generator returned {len(completions)} completions for {len(prompts)} prompts.")
    try:
        return [completion_text(completion) for completion in completions]
    except TypeError as error:
        raise TypeError(f"The {role}'s generator returned something else than texts. {error}") from None


def run_solver(
    topology: ThinkSolve,
    prompts: list[Prompt],
    thoughts: list[str],
    generate: Generate,
    *,
    num_solves: int = 1,
    solo_rows: Sequence[int] = (),
    reader: AnswerReader = DEFAULT_READER,
) -> Episodes:
    """
    The Solver's half of an episode: joint and solo answers, in one call since they do not depend on each other.

    Args:
        topology ([`ThinkSolve`]): the prompts' templates.
        prompts (`list`): the dataset's prompts, length n, text or chat messages.
        thoughts (`list[str]`): the Thinker's texts, length n.
        generate (`Callable`): takes prompts and returns their completions.
        num_solves (`int`, defaults to 1): K answers per thought.
        solo_rows (`Sequence[int]`): rows to answer without the thought, one solo each; repeat a row for several.
        reader ([`~ccpo.team.answers.AnswerReader`]): finds what the leak guard takes out of a thought.

    Returns:
        [`Episodes`]

    Raises:
        `ValueError`, `TypeError`: what the generator returns is not one completion per prompt.
    """
    joint = [
        build_solver_messages(prompt, thought, topology.solver_prompt, reader)
        for prompt, thought in zip(prompts, thoughts, strict=True)
        for _ in range(num_solves)
    ]
    solo = [build_solo_messages(prompts[row], topology.solo_prompt) for row in solo_rows]
    texts = ask("solver", generate, joint + solo)
    return Episodes(
        prompts=prompts,
        thoughts=thoughts,
        answers=texts[: len(joint)],
        solos=texts[len(joint) :],
        solo_rows=list(solo_rows),
        role_prompts={"solver": joint},
        reader=reader,
    )


def run_episodes(
    topology: ThinkSolve,
    prompts: list[Prompt],
    generate: dict[str, Generate],
    *,
    num_solves: int = 1,
    solo_rows: Sequence[int] = (),
    reader: AnswerReader = DEFAULT_READER,
) -> Episodes:
    """
    Run the topology: the Thinker reads each problem, the Solver problem and thought, and the solos the problem alone.

    Args:
        topology ([`ThinkSolve`]): who speaks and with which prompts.
        prompts (`list`): the dataset's prompts, length n, text or chat messages; one thought is drawn for each.
        generate (`dict[str, Callable]`): a generator per role: takes prompts, returns completions in the same order.
        num_solves (`int`, defaults to 1): K answers per thought.
        solo_rows (`Sequence[int]`): rows to answer without the thought.
        reader ([`~ccpo.team.answers.AnswerReader`]): finds what the leak guard takes out of a thought.

    Returns:
        [`Episodes`]

    Raises:
        `ValueError`: a role has no generator, or its generator returns not one completion per prompt.
    """
    if missing := [name for name in topology.role_names if name not in generate]:
        raise ValueError(f"`generate` has no generator for the roles {missing}; it has {sorted(generate)}.")

    def speak(role: Role, read: dict[str, Episodes | list[str]]):
        if role.name == "thinker":
            asked["thinker"] = [build_thinker_messages(prompt, topology.thinker_prompt) for prompt in prompts]
            return ask("thinker", generate["thinker"], asked["thinker"])
        thoughts = read["thinker"]
        options = {"num_solves": num_solves, "solo_rows": solo_rows, "reader": reader}
        return run_solver(topology, prompts, thoughts, generate["solver"], **options)

    asked: dict[str, list[Prompt]] = {}
    episodes = topology.run(speak)["solver"]
    episodes.role_prompts = {**asked, **episodes.role_prompts}
    return episodes


def assign_solos(rows: int, num_processes: int, group: int, num_solos: int) -> tuple[list[list[int]], list[bool]]:
    """
    Which row answers its problem alone: every prompt gets S solos though its group may be split over processes.

    Every process gets equally many, at least one, since sharded generation is a collective; the surplus is dropped.

    Args:
        rows (`int`): rows per process, n.
        num_processes (`int`): W.
        group (`int`): G, rows of one prompt, side by side in the global order.
        num_solos (`int`): S.

    Returns:
        `tuple[list[list[int]], list[bool]]`: per process the local rows, repeated for several solos, all of length m;
        and for the W·m solos in the order of the processes whether each counts. Those that do are sorted by prompt.

    Raises:
        `ValueError`: the batch of all processes is not made of whole groups.
    """
    if rows * num_processes % group:
        raise ValueError(
            f"`rows` x `num_processes` must be a multiple of `group`, got {rows} x {num_processes} and {group}."
        )

    def count(row: int) -> int:
        place = row % group
        return (place + 1) * num_solos // group - place * num_solos // group

    mine = [[row for row in range(rows) for _ in range(count(rank * rows + row))] for rank in range(num_processes)]
    size = max(1, *map(len, mine))
    padded = [local + [0] * (size - len(local)) for local in mine]
    return padded, [i < len(local) for local in mine for i in range(size)]
