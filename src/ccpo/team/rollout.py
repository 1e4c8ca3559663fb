"""
Run a team on a batch of problems, as a whole and without one of its roles. Training, evaluation and the reward
functions for TRL's own trainer all use this code.

The texts of a problem are a tree: text m of role j continues text m // b_j of role j-1, and reads text
m // (M_j / M_i) of an earlier role i, where M_j = b_1 · … · b_j is how many texts of role j a row of the batch has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..calls import call
from .answers import DEFAULT_READER, AnswerReader
from .completions import completion_text
from .fit import Request, fit_prompts
from .prompts import Prompt, build_messages, build_thinker_messages, problem_text, whole_characters
from .role import Role
from .topology import Topology

Generate = Callable[[list[Prompt]], list[str]]


@dataclass(frozen=True)
class Passes:
    """
    Which passes (runs of the team on one problem) to make without a role.

    Args:
        places (`tuple[int, ...]`):
            For each pass the row of the batch whose problem it answers; or, where the roles before stay as they
            spoke, the text of the role before the removed one that it goes on from.
        in_context (`bool`, defaults to `False`): whether the roles before the removed one stay as they spoke.
    """

    places: tuple[int, ...]
    in_context: bool = False


@dataclass
class Texts:
    """
    What a role was asked, and what it wrote.

    Attributes:
        prompts (`list`): what it was asked.
        texts (`list[str]`): what it wrote.
        rows (`list[int]`): the row of the batch that each belongs to.
        start (`int`): how many prompts its generator had before the first of these.
        cut (`list[bool]`): whether others' texts were cut in what it was asked, so that it fits the model's context.
    """

    prompts: list[Prompt]
    texts: list[str]
    rows: list[int]
    start: int = 0
    cut: list[bool] = field(default_factory=list, compare=False)


@dataclass
class Episodes:
    """
    All that a team wrote about a batch of `n` rows.

    Attributes:
        topology ([`Topology`]): who speaks.
        prompts (`list`): the dataset's prompts, length n.
        branches (`tuple[int, ...]`): how many texts of each role continue one of the role before it.
        said (`dict[str, Texts]`): role -> its texts, those of a row side by side.
        without (`dict[str, dict[str, Texts]]`): removed role -> role -> its texts, one in each pass.
        passes (`dict[str, Passes]`): the passes without each removed role.
        reader ([`~ccpo.team.answers.AnswerReader`]): finds the answers that the leak guard removes.
        ends (`dict[str, tuple[str, ...]]`): role -> strings that may end its texts, which are cut off for readers.
        ratings (`dict[str, list[str]]`): role -> what it wrote when it rated each leaf, where it rated in free text.
    """

    topology: Topology
    prompts: list[Prompt]
    branches: tuple[int, ...]
    said: dict[str, Texts] = field(default_factory=dict)
    without: dict[str, dict[str, Texts]] = field(default_factory=dict)
    passes: dict[str, Passes] = field(default_factory=dict)
    reader: AnswerReader = DEFAULT_READER
    ends: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    ratings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def answers(self) -> list[str]:
        """The texts of the last role, the leaves of the tree."""
        return self.said[self.topology.role_names[-1]].texts

    def texts_per_row(self, role: str) -> int:
        """How many texts of a role a row has."""
        return math.prod(self.branches[: self.topology.role_names.index(role) + 1])

    def above(self, role: str, leaf: int) -> int:
        """The text of a role that stands above a leaf."""
        return leaf // (self.texts_per_row(self.topology.role_names[-1]) // self.texts_per_row(role))

    def view(self, role: str, text: str) -> str:
        """
        A role's text as other roles read it: without its stop string, without a stated answer (the leak guard removes
        it), and with invalid characters replaced.
        """
        text = text.removesuffix(next((end for end in self.ends.get(role, ()) if text.endswith(end)), ""))
        return whole_characters(self.reader.strip(text) if self.topology.guarded(role) else text)

    def cuts(self, role: str) -> list[bool]:
        """Whether others' texts were cut, for each prompt of a role that has some, in passes without a role too."""
        reads, seen = self.topology[role].reads, [self.said[role]]
        seen += [said[role] for removed, said in self.without.items() if role in said and {*reads} - {removed}]
        return [cut for texts in seen for cut in texts.cut] if reads else []

    @property
    def leaked(self) -> list[bool]:
        """Whether each text that passes the leak guard stated an answer, which the guard took out."""
        texts = self.said.items()
        return [self.reader.has(t) for role, said in texts if self.topology.guarded(role) for t in said.texts]


class _Arm:
    """An arm is one way to run the team: as a whole, or without one role."""

    def __init__(self, episodes: Episodes, removed: str | None, passes: Passes | None):
        self.episodes, self.removed, self.passes = episodes, removed, passes
        topology = episodes.topology
        self.roles = {role.name: role for role in (topology.without(removed) if removed else topology.roles)}
        self.said = episodes.said if removed is None else episodes.without.setdefault(removed, {})
        self.kept: tuple[str, ...] = ()  # roles that stay as they spoke
        if passes is not None and passes.in_context and removed == topology.role_names[0]:
            raise ValueError(
                f"`removals[{removed!r}]` has `in_context=True`, which keeps the texts of the roles before "
                "the removed one. There is no role before the first. Set `in_context=False`, and give rows "
                "of the batch as `places`."
            )
        if passes is not None and passes.in_context:
            self.kept = topology.role_names[: topology.role_names.index(removed)]
            self.above = self.kept[-1]
        if passes is not None:
            episodes.passes[removed] = passes

    def rows(self, name: str) -> list[int]:
        """The row of each text that the role is to write."""
        if self.passes is None:
            size = self.episodes.texts_per_row(name)
            return [row for row in range(len(self.episodes.prompts)) for _ in range(size)]
        size = self.episodes.texts_per_row(self.above) if self.kept else 1
        return [place // size for place in self.passes.places]

    def read(self, reader: str, m: int, name: str) -> str:
        """What text m of `reader` reads of the role `name`."""
        episodes = self.episodes
        if self.passes is None:
            ratio = episodes.texts_per_row(reader) // episodes.texts_per_row(name)
            text = episodes.said[name].texts[m // ratio]
        elif name in self.kept:
            ratio = episodes.texts_per_row(self.above) // episodes.texts_per_row(name)
            text = episodes.said[name].texts[self.passes.places[m] // ratio]
        else:
            text = self.said[name].texts[m]
        return episodes.view(name, text)


def build_role_prompt(topology: Topology, role: Role, prompt: Prompt, read: Mapping[str, str]) -> Prompt:
    """
    Write the prompt of a role.

    Args:
        topology ([`Topology`]): says whether the role is to state an answer; if not, its problem does not ask for one.
        role ([`Role`]): whose template.
        prompt (`str` or `list[dict]`): the dataset's.
        read (`Mapping[str, str]`): role read -> its text, as it is to be read.
    """
    if role.prompt is None:  # of one role, which answers the dataset's own prompts
        return prompt
    if topology.answers(role.name):
        return build_messages(role.prompt, prompt, **read)
    return build_thinker_messages(prompt, role.prompt, **read)


def run_team(
    topology: Topology,
    prompts: list[Prompt],
    generate: Mapping[str, Generate],
    *,
    branches: Sequence[int] | None = None,
    removals: Mapping[str, Passes] | None = None,
    given: Mapping[str, list[str]] | None = None,
    reader: AnswerReader = DEFAULT_READER,
    around: Callable[[Generate, list[tuple[str, int]]], AbstractContextManager] = lambda *call: nullcontext(),
) -> Episodes:
    """
    Run the team on a batch. Roles that do not wait for each other speak in one call of their generator.

    Args:
        topology ([`Topology`]): who speaks, and with which prompts.
        prompts (`list`): the dataset's prompts, length n, text or chat messages.
        generate (`Mapping[str, Callable]`):
            Role -> generator: takes prompts, returns completions in the same order. Roles may have the same one. With
            `prompt_limit` and `count_tokens`, what a role reads is cut to fit, see [`~ccpo.team.fit.fit_prompts`].
        branches (`Sequence[int]`, *optional*): texts that continue one text, by role. Defaults to the topology's.
        removals (`Mapping[str, Passes]`, *optional*): removed role -> the passes to run without it.
        given (`Mapping[str, list[str]]`, *optional*): what the first role has written already.
        reader ([`~ccpo.team.answers.AnswerReader`]): finds what the leak guard takes out.
        around (`Callable`):
            A context for each call, which gets the generator and the call's parts: `(arm, number of prompts)`.

    Returns:
        [`Episodes`]

    Raises:
        `ValueError`: a role has no generator, its generator returns not one completion per prompt, `given` has another
            number of texts, or a problem does not fit the model's context by itself.
        `TypeError`: a generator returns things that are no completions.
    """
    given = dict(given or {})
    if missing := [name for name in topology.role_names if name not in generate and name not in given]:
        raise ValueError(
            f"`generate` has no generator for the roles {missing}. It has generators for {sorted(generate)}. Add "
            "the missing ones."
        )
    ends = {name: getattr(speaker, "ends", ()) for name, speaker in generate.items()}
    episodes = Episodes(topology, prompts, tuple(branches or topology.branches()), reader=reader, ends=ends)
    arms = [_Arm(episodes, None, None)]
    arms += [_Arm(episodes, removed, passes) for removed, passes in (removals or {}).items()]
    asked: dict[int, int] = {}  # generator -> prompts that it has had
    for level in range(max(topology.levels.values()) + 1):
        calls: dict[int, list[tuple[_Arm, str]]] = {}
        for arm in arms:
            for name in arm.roles:
                if topology.levels[name] != level or name in arm.kept:
                    continue
                if arm.removed is None and name in given:
                    rows, texts = arm.rows(name), list(given[name])
                    if len(texts) != len(rows):
                        raise ValueError(
                            f"`given[{name!r}]` must have {len(rows)} texts, one for each that the role would "
                            f"write, got {len(texts)}. Give as many."
                        )
                    arm.said[name] = Texts([], texts, rows)
                else:
                    calls.setdefault(id(generate[name]), []).append((arm, name))
        for key, parts in calls.items():
            speaker, start = parts[0][1], asked.get(key, 0)
            requests = [_requests(arm, name) for arm, name in parts]
            prompts, cut = fit_prompts([request for own in requests for request in own], generate[speaker])
            counts = [
                (_arm_label(topology, arm, name), len(own)) for (arm, name), own in zip(parts, requests, strict=True)
            ]
            with around(generate[speaker], counts):
                completions = ask(speaker, generate[speaker], prompts)
            place = 0
            for (arm, name), (_, count) in zip(parts, counts, strict=True):
                own = slice(place, place + count)
                arm.said[name] = Texts(prompts[own], completions[own], arm.rows(name), start + place, cut[own])
                place += count
            asked[key] = start + place
    return episodes


def _arm_label(topology: Topology, arm: _Arm, name: str) -> str:
    """What the tokens of a role's texts count for."""
    return topology.label(f"rollout/{name if arm.removed is None else f'without_{arm.removed}'}")


def _requests(arm: _Arm, name: str) -> list[Request]:
    """What the role is to be asked in this arm."""
    role, episodes, requests = arm.roles[name], arm.episodes, []
    for m, row in enumerate(arm.rows(name)):
        read = {other: arm.read(name, m, other) for other in role.reads}
        build = partial(build_role_prompt, episodes.topology, role, episodes.prompts[row])
        requests.append(Request(name, read, build, partial(_row_of, episodes, row)))
    return requests


def _row_of(episodes: Episodes, row: int) -> str:
    prompt = episodes.prompts[row]
    return f"row {row} of the batch ({prompt if episodes.topology.is_solo else problem_text(prompt)!r:.80})"


def ask(role: str, generate: Generate, prompts: list[Prompt], **options: Any) -> list[str]:
    """
    Ask a role's generator, and check that it returns one completion per prompt.

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
            f"The generator of role {role!r} returned {completions!r:.80}. It must take a list of prompts and "
            "return a list of completions, one per prompt."
        )
    if len(completions) != len(prompts):
        raise ValueError(
            f"The generator of role {role!r} returned {len(completions)} completions for {len(prompts)} prompts. "
            "It must return one per prompt, in the same order."
        )
    try:
        return [completion_text(completion) for completion in completions]
    except TypeError as error:
        raise TypeError(f"The generator of role {role!r} returned items that are not texts. {error}") from None


def assign_solos(rows: int, num_processes: int, group: int, num_solos: int) -> tuple[list[list[int]], list[bool]]:
    """
    Distribute the passes without a role over the rows of all processes, so that each prompt gets S of them.

    Each process gets the same number, at least one, because all processes must generate together if weights are
    sharded. Passes that are not needed are dropped.

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
