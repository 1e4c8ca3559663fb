"""[`Team`]: a team that answers, from the folder of a run, from models, or from endpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..generation import Completion, TransformersGenerator
from ..team.answers import reader_of
from ..team.prompts import Prompt
from ..team.rollout import Episodes, run_team
from ..team.topology import Topology, make_topology
from ..verifier.clusters import cluster_answers, plurality
from ..verifier.math_verifier import MathVerifier

TEAM_FILE = "team.json"  # beside the agents' folders: who speaks, with which prompts, sampled how


@dataclass(frozen=True)
class TeamAnswer:
    """
    What a team said about one problem.

    Attributes:
        text (`str`): the answer that a user is shown: the last role's text; of a vote, the earliest of the plurality.
        role (`str`): whose text that is.
        texts (`dict[str, str]`): role -> what it wrote, in the order in which they spoke.
        prompts (`dict[str, str | list[dict]]`): role -> what it was asked.
        completions (`dict[str, Completion]`): role -> its text with tokens, and whether it was cut.
    """

    text: str
    role: str
    texts: dict[str, str]
    prompts: dict[str, Prompt]
    completions: dict[str, Completion]

    @property
    def tokens(self) -> int | None:
        """Tokens that all roles drew; `None` where a generator does not tell."""
        counts = [completion.tokens for completion in self.completions.values()]
        return None if None in counts else sum(counts)


class Recorder:
    """
    A generator that remembers what it drew beside the texts.

    Args:
        generate (`Callable`): prompts -> texts; with a method `generate`, prompts -> [`Completion`], tokens are known.

    Attributes:
        completions (`list[Completion]`): one for each prompt that it has had, in their order.
    """

    def __init__(self, generate: Callable):
        self.inner, self.completions = generate, []

    def __call__(self, prompts: list[Prompt]) -> list[str]:
        drawn = self.inner.generate(prompts) if hasattr(self.inner, "generate") else self.inner(prompts)
        made = [drawn_one if isinstance(drawn_one, Completion) else Completion(drawn_one) for drawn_one in drawn]
        self.completions += made
        return [completion.text for completion in made]

    def __getattr__(self, name: str) -> Any:
        if name in ("prompt_limit", "count_tokens"):  # what prompts are made to fit with
            return getattr(self.inner, name)
        raise AttributeError(name)


class Team:
    """
    A team that answers problems.

    Args:
        topology ([`Topology`]): who speaks, and with which prompts.
        generate (`Mapping[str, Callable]`): role -> generator; roles of one model may have the same one.
        outcome (`Callable`, *optional*):
            Says where an answer stands, for the leak guard, and in a vote which answers are equal. [`MathVerifier`] by
            default.

    Raises:
        `ValueError`: a role without a generator.
    """

    def __init__(self, topology: Topology, generate: Mapping[str, Callable], outcome: Callable | None = None):
        self.topology, self.generate = topology, dict(generate)
        self.outcome = MathVerifier() if outcome is None else outcome
        if missing := [role for role in topology.role_names if role not in self.generate]:
            raise ValueError(f"`generate` has no generator for the roles {missing}; it has {sorted(self.generate)}.")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        generate: Mapping[str, Callable] | None = None,
        seed: int | None = None,
        **overrides: Any,
    ) -> "Team":
        """
        The team that a run saved.

        Args:
            folder (`str` or `Path`): a run's `output_dir`, or a checkpoint: `team.json` and a folder per agent.
            generate (`Mapping[str, Callable]`, *optional*):
                Role or agent -> a generator in place of the saved model, such as an [`OpenAIGenerator`].
            seed (`int`, *optional*): of the samples, one for the team.
            overrides:
                Arguments of [`TransformersGenerator`] that replace how the run sampled: `temperature`, `top_p`,
                `top_k`, `max_new_tokens`, `batch_size`, `model_init_kwargs`, `generation_kwargs`,
                `chat_template_kwargs`.

        Raises:
            `ValueError`: no such folder, no team in it, an agent whose model is missing, or a generator of nobody.
        """
        folder = Path(folder)
        topology, sampling, answer_pattern = read_team(folder)
        given = dict(generate or {})
        if unknown := sorted(set(given) - {*topology.role_names, *topology.agents}):
            raise ValueError(
                f"`generate` names {unknown}; the team has the roles {list(topology.role_names)} and the agents "
                f"{list(topology.agents)}."
            )
        made: dict[str, Callable] = {}
        generators = {}
        for role in topology.role_names:
            agent = topology.agent_of(role)
            if role in given or agent in given:
                generators[role] = given.get(role, given.get(agent))
                continue
            if not (folder / agent).is_dir():
                raise ValueError(
                    f"{folder} has no model of the agent {agent!r}. Give one in `generate`, or save it again."
                )
            options = {**sampling.get(role, {}), **overrides}
            key = repr((agent, sorted(options.items(), key=str)))
            if key not in made:  # agents that are alike would draw alike from one seed
                own_seed = None if seed is None else 1000 * seed + len(made)
                made[key] = TransformersGenerator(str(folder / agent), seed=own_seed, **options)
            generators[role] = made[key]
        return cls(topology, generators, MathVerifier(answer_pattern=answer_pattern))

    def __call__(self, problems: Sequence[Prompt] | Prompt, *, batch_size: int = 64) -> list[TeamAnswer] | TeamAnswer:
        """
        Answer problems.

        Args:
            problems (`list`, or one): texts or chat messages, as the dataset's `prompt` was in training.
            batch_size (`int`, defaults to 64): problems at once.

        Returns:
            `list[TeamAnswer]` in the order of the problems; one [`TeamAnswer`] for one problem.

        Raises:
            `ValueError`: a problem that does not fit a model's context by itself.
        """
        if _is_one(problems):
            return self([problems], batch_size=batch_size)[0]
        answers: list[TeamAnswer] = []
        for start in range(0, len(problems), batch_size):
            answers += self.answer(list(problems[start : start + batch_size]))
        return answers

    def answer(self, problems: list[Prompt], **options: Any) -> list[TeamAnswer]:
        """One batch; `options` are [`run_team`]'s."""
        recorders = {id(generate): Recorder(generate) for generate in self.generate.values()}
        speak = {role: recorders[id(generate)] for role, generate in self.generate.items()}
        ones = [1] * len(self.topology.roles)
        episodes = run_team(self.topology, problems, speak, branches=ones, reader=reader_of(self.outcome), **options)
        return self.read(episodes, {role: recorder.completions for role, recorder in speak.items()})

    def read(self, episodes: Episodes, drawn: Mapping[str, list[Completion]]) -> list[TeamAnswer]:
        """The answers of a batch in which every role spoke once for each problem."""
        roles, said = self.topology.role_names, episodes.said
        shown = [self.topology.answer_roles[-1]] * len(episodes.prompts)
        if self.topology.answer == "vote":
            voters = self.topology.answer_roles
            texts = [list(row) for row in zip(*(said[name].texts for name in voters), strict=True)]
            shown = [voters[i] for i in plurality(texts, cluster_answers(texts, self.outcome))]
        completions = {
            role: drawn[role][said[role].start : said[role].start + len(said[role].texts)]
            if said[role].prompts
            else [Completion(text) for text in said[role].texts]
            for role in roles
        }
        return [
            TeamAnswer(
                text=said[shown[i]].texts[i],
                role=shown[i],
                texts={role: said[role].texts[i] for role in roles},
                prompts={role: said[role].prompts[i] for role in roles if said[role].prompts},
                completions={role: completions[role][i] for role in roles},
            )
            for i in range(len(episodes.prompts))
        ]


def read_team(folder: Path) -> tuple[Topology, dict[str, dict[str, Any]], str | None]:
    """
    A saved team's topology, how each role was sampled, and where its answers stand.

    Raises:
        `ValueError`: no such folder, or no readable team in it.
    """
    file = Path(folder) / TEAM_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {TEAM_FILE}: it is not the folder of a trained team, or its save was cut short. Give "
            "the run's `output_dir`, or a complete checkpoint of it."
        )
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        run = saved.pop("run", None) or {}
        topology = make_topology(saved)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read as a team ({error}). Save the team again.") from error
    return topology, run.get("sampling", {}), run.get("answer_pattern")


def _is_one(problems: Any) -> bool:
    """Whether it is one problem: a text, or the messages of one conversation."""
    return isinstance(problems, str) or (len(problems) > 0 and isinstance(problems[0], Mapping))
