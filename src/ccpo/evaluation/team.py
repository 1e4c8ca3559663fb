"""[`Team`]: a team that answers, from the folder of a run, from models, or from endpoints."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calls import call
from ..generation import Completion
from ..generation.inputs import check_prompts, check_range
from ..team.answers import reader_of
from ..team.completions import completion_text
from ..team.prompts import Prompt
from ..team.rollout import Episodes, ask, run_team
from ..team.topology import Topology, make_topology
from ..verifier.clusters import cluster_answers, plurality
from ..verifier.math_verifier import MathVerifier
from .loading import find_folders, make_generators, read_team

# Role, problem's place, a piece of its text, and the completion once that is whole -> whether the text is enough.
Hear = Callable[[str, int, str, Completion | None], bool]


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
        """Tokens of all roles' texts; `None` where a generator does not tell."""
        counts = [completion.tokens for completion in self.completions.values()]
        return None if None in counts else sum(counts)


class Recorder:
    """
    A generator that remembers what it drew beside the texts.

    Args:
        generate (`Callable`): prompts -> texts; with a method `generate`, prompts -> [`Completion`], tokens are known.
        roles (`list[str]`): who speaks with it, for the errors.
        hear (`Callable`, *optional*): as for [`Team.answer`].

    Attributes:
        completions (`list[Completion]`): one for each prompt that it has had, in their order.
        speaking (`list[str]`): the roles that the next call is of, each with as many prompts.
    """

    def __init__(self, generate: Callable, roles: list[str], hear: Hear | None = None):
        self.inner, self.roles, self.hear, self.completions = generate, roles, hear, []
        self.speaking: list[str] = roles

    def __call__(self, prompts: list[Prompt]) -> list[str]:
        size = len(prompts) // len(self.speaking)
        with self._naming_roles():
            if hasattr(self.inner, "generate"):
                options = {}
                if self.hear is not None and "watch" in inspect.signature(self.inner.generate).parameters:
                    options["watch"] = lambda i, piece: self.hear(self.speaking[i // size], i % size, piece, None)
                drawn = call(self.inner.generate, prompts, **options)
            else:
                drawn = ask(" and ".join(self.roles), self.inner, prompts)
        made = [c if isinstance(c, Completion) else Completion(completion_text(c)) for c in drawn]
        self.completions += made
        for i, completion in enumerate(made if self.hear is not None else ()):
            self.hear(self.speaking[i // size], i % size, "", completion)
        return [completion.text for completion in made]

    def __getattr__(self, name: str) -> Any:
        if name not in ("prompt_limit", "count_tokens"):  # what prompts are made to fit with
            raise AttributeError(name)
        with self._naming_roles():
            found = getattr(self.inner, name)
        return self._count_tokens if name == "count_tokens" else found

    def _count_tokens(self, prompts: list[Prompt]) -> list[int]:
        with self._naming_roles():
            return call(self.inner.count_tokens, prompts)

    @contextmanager
    def _naming_roles(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(f"It was the generator of {self.roles}.")
            raise


class Team:
    """
    A team that answers problems.

    Args:
        topology ([`Topology`]): who speaks, and with which prompts.
        generate (`Mapping[str, Callable]`): role -> generator; roles of one model may have the same one.
        outcome (`Callable`, *optional*):
            Says where an answer stands, for the leak guard, and in a vote which answers are equal; an evaluation
            judges by it. A TRL reward function, [`MathVerifier`] by default.

    Raises:
        `ValueError`: a role without a generator.
    """

    def __init__(self, topology: Topology, generate: Mapping[str, Callable], outcome: Callable | None = None):
        self.topology, self.generate = topology, dict(generate)
        self.outcome = MathVerifier() if outcome is None else outcome
        if missing := [role for role in topology.role_names if role not in self.generate]:
            raise ValueError(
                f"`generate` has no generator for the roles {missing}. It has generators for "
                f"{sorted(self.generate)}. Add the missing ones."
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        generate: Mapping[str, Callable] | None = None,
        outcome: Callable | None = None,
        backend: str = "transformers",
        seed: int | None = None,
        **overrides: Any,
    ) -> "Team":
        """
        The team that a run saved.

        Args:
            folder (`str` or `Path`):
                A run's `output_dir`, or a checkpoint: `team.json` and a folder for each agent; of one role alone, its
                model stands beside `team.json`.
            generate (`Mapping[str, Callable]`, *optional*):
                Role or agent -> a generator in place of the saved model, such as an [`OpenAIGenerator`].
            outcome (`Callable`, *optional*): as for [`Team`]; by default a [`MathVerifier`] that reads answers as the
                run's did.
            backend (`str`, defaults to `"transformers"`): or `"vllm"`, its offline engine.
            seed (`int`, *optional*): of the samples, one for the team.
            overrides:
                Arguments of [`TransformersGenerator`] (or [`VLLMGenerator`]) that replace how the run sampled:
                `temperature`, `top_p`, `top_k`, `max_new_tokens`, `model_init_kwargs`, `generation_kwargs`,
                `chat_template_kwargs`, and others.

        Raises:
            `ValueError`: no such folder, no team in it, an agent whose model is missing or not whole, or a generator
                of nobody.
        """
        topology, sampling, answer_pattern = read_team(folder)
        given = dict(generate or {})
        models = find_folders(folder, topology, _spoken_for(topology, given))
        options = {"backend": backend, "seed": seed, **overrides}
        generators = make_generators(topology, models, given, sampling, **options)
        return cls(topology, generators, MathVerifier(answer_pattern=answer_pattern) if outcome is None else outcome)

    @classmethod
    def from_models(
        cls,
        models: str | Mapping[str, str],
        topology: Any,
        *,
        generate: Mapping[str, Callable] | None = None,
        outcome: Callable | None = None,
        backend: str = "transformers",
        seed: int | None = None,
        **sampling: Any,
    ) -> "Team":
        """
        A team of models that no run has saved together.

        Args:
            models (`str` or `Mapping[str, str]`): agent -> id or folder; or one for all agents.
            topology: who speaks, as [`~ccpo.team.topology.make_topology`] takes it: a [`Topology`], or its kind.
            generate, outcome, backend, seed: as for [`from_pretrained`].
            sampling: arguments of every generator.

        Raises:
            `ValueError`: a topology that cannot be, or an agent without a model.
        """
        topology, given = make_topology(topology), dict(generate or {})
        if isinstance(models, str | Path):
            covered = _spoken_for(topology, given)
            models = {agent: str(models) for agent in topology.agents if agent not in covered}
        options = {"backend": backend, "seed": seed, **sampling}
        return cls(topology, make_generators(topology, models, given, {}, **options), outcome)

    def __call__(self, problems: Sequence[Prompt] | Prompt, *, batch_size: int = 64) -> list[TeamAnswer] | TeamAnswer:
        """
        Answer problems.

        Args:
            problems (`list`, or one): texts or chat messages, as the dataset's `prompt` was in training.
            batch_size (`int`, defaults to 64): problems at once.

        Returns:
            `list[TeamAnswer]` in the order of the problems; one [`TeamAnswer`] for one problem.

        Raises:
            `ValueError`: a problem that does not fit a model's context by itself, or a `batch_size` below 1.
            `TypeError`: what is neither a text nor chat messages.
        """
        if _is_one(problems):
            return self([problems], batch_size=batch_size)[0]
        check_range("batch_size", batch_size, 1)
        problems = check_prompts(problems)
        answers: list[TeamAnswer] = []
        for start in range(0, len(problems), batch_size):
            answers += self.answer(problems[start : start + batch_size])
        return answers

    def answer(
        self,
        problems: list[Prompt],
        given: Mapping[str, list[Completion]] | None = None,
        hear: Hear | None = None,
    ) -> list[TeamAnswer]:
        """
        One batch.

        Args:
            problems (`list`): texts or chat messages.
            given (`Mapping[str, list[Completion]]`, *optional*): role -> what it has said already about each.
            hear (`Callable`, *optional*):
                Is told what is said while it is said: role, the problem's place, a piece of the role's text, `None`;
                returns whether that is enough of this text. When the text is whole: role, place, `""` and the
                [`Completion`]. Pieces come from generators that can be watched (`generate(prompts, watch=…)`), maybe
                on several threads.
        """
        given = dict(given or {})
        speakers: dict[int, list[str]] = {}
        for role in self.topology.role_names:
            speakers.setdefault(id(self.generate[role]), []).append(role)
        recorders = {key: Recorder(self.generate[roles[0]], roles, hear) for key, roles in speakers.items()}
        speak = {role: recorders[id(self.generate[role])] for role in self.topology.role_names}
        labels = {self.topology.label(f"rollout/{role}"): role for role in self.topology.role_names}

        def tell(recorder: Recorder, parts: list[tuple[str, int]]) -> nullcontext:
            recorder.speaking = [labels[label] for label, _ in parts]
            return nullcontext()

        episodes = run_team(
            self.topology,
            problems,
            speak,
            branches=[1] * len(self.topology.roles),
            given={role: [completion.text for completion in said] for role, said in given.items()},
            reader=reader_of(self.outcome),
            around=tell,
        )
        drawn = {role: recorder.completions for role, recorder in speak.items()}
        return self._read(episodes, drawn, given)

    def _read(
        self, episodes: Episodes, drawn: Mapping[str, list[Completion]], given: Mapping[str, list[Completion]]
    ) -> list[TeamAnswer]:
        """The answers of a batch in which every role spoke once for each problem."""
        roles, said = self.topology.role_names, episodes.said
        shown = [self.topology.answer_roles[-1]] * len(episodes.prompts)
        if self.topology.answer == "vote":
            voters = self.topology.answer_roles
            texts = [list(row) for row in zip(*(said[name].texts for name in voters), strict=True)]
            shown = [voters[i] for i in plurality(texts, cluster_answers(texts, self.outcome))]
        completions = {role: given.get(role) or drawn[role][said[role].start :] for role in roles}
        return [
            TeamAnswer(
                text=said[shown[i]].texts[i],
                role=shown[i],
                texts={role: said[role].texts[i] for role in roles},
                prompts={role: said[role].prompts[i] for role in roles if role not in given},
                completions={role: completions[role][i] for role in roles},
            )
            for i in range(len(episodes.prompts))
        ]


def _spoken_for(topology: Topology, given: Mapping[str, Callable]) -> set[str]:
    """The agents all of whose roles have a generator."""
    return {
        agent for agent in topology.agents if agent in given or all(role in given for role in topology.roles_of(agent))
    }


def _is_one(problems: Any) -> bool:
    """Whether it is one problem: a text, or the messages of one conversation."""
    return isinstance(problems, str) or (len(problems) > 0 and isinstance(problems[0], Mapping))
