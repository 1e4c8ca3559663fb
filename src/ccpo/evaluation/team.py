"""[`Team`]: a team that answers problems. It is made from the folder of a run, from models, or from endpoints."""

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

# Takes a role, the index of a problem, a new piece of text, and the completion if it is complete, else `None`. If it
# returns `True`, the text ends.
Hear = Callable[[str, int, str, Completion | None], bool]


@dataclass(frozen=True)
class TeamAnswer:
    """
    What a team wrote about one problem.

    Attributes:
        text (`str`):
            The answer that is shown to a user: the text of the last role that answers, or after a vote the first text
            of the largest cluster of equal answers.
        role (`str`): The role that wrote it.
        texts (`dict[str, str]`): Maps each role to what it wrote, in the order in which they spoke.
        prompts (`dict[str, str | list[dict]]`): Maps each role to its prompt.
        completions (`dict[str, Completion]`): Maps each role to its text with numbers of tokens.
    """

    text: str
    role: str
    texts: dict[str, str]
    prompts: dict[str, Prompt]
    completions: dict[str, Completion]

    @property
    def tokens(self) -> int | None:
        """The number of tokens of all texts together; `None` if a generator does not report it."""
        counts = [completion.tokens for completion in self.completions.values()]
        return None if None in counts else sum(counts)


class Recorder:
    """
    A generator that keeps the completions of another generator, with their numbers of tokens.

    Args:
        generate (`Callable`):
            The other generator. Numbers of tokens are known if it has a method `generate` that returns
            [`~ccpo.generation.Completion`]s.
        roles (`list[str]`): The roles for which it writes, for messages.
        hear (`Callable`, *optional*): As for [`Team.answer`].

    Attributes:
        completions (`list[Completion]`): A completion for each prompt so far, in their order.
        speaking (`list[str]`): The roles of the next call, each with the same number of prompts.
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
        if name not in ("prompt_limit", "count_tokens"):  # these are used to make prompts fit
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
        topology ([`Topology`]): The roles, who reads whose texts, and the prompts.
        generate (`Mapping[str, Callable]`): Maps each role to its generator. Roles may have the same one.
        outcome (`Callable`, *optional*):
            A TRL reward function. It finds the answer in a text for the leak guard, compares answers in a vote, and
            judges answers in an evaluation. Defaults to [`MathVerifier`].

    Raises:
        `ValueError`: If a role has no generator.
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
        Load a team that a run saved. The models are loaded when they are first used.

        Args:
            folder (`str` or `Path`):
                The run's `output_dir`, or one of its checkpoints. It holds `team.json` and a folder for each agent. A
                team of one role has its model in the same folder as `team.json`.
            generate (`Mapping[str, Callable]`, *optional*):
                Maps a role or agent to a generator that replaces the saved model, such as an [`OpenAIGenerator`].
            outcome (`Callable`, *optional*):
                As for [`Team`]. Defaults to a [`MathVerifier`] with the `answer_pattern` of the run.
            backend (`str`, defaults to `"transformers"`): `"transformers"`, or `"vllm"` for vLLM's offline engine.
            seed (`int`, *optional*): A seed for the samples of the whole team.
            overrides:
                Arguments of [`TransformersGenerator`] (or [`VLLMGenerator`]) that replace the settings of the run,
                such as `temperature`, `top_p`, `top_k`, `max_new_tokens`, `model_init_kwargs`, `generation_kwargs` and
                `chat_template_kwargs`.

        Returns:
            [`Team`]

        Raises:
            `ValueError`: If the folder does not exist or has no team, if an agent's model is missing or incomplete, or
                if `generate` names an unknown role.
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
        Make a team of any models, e.g. of models that were not trained together.

        Args:
            models (`str` or `Mapping[str, str]`):
                The id or folder of a model for all agents, or a mapping from each agent to its model.
            topology: The team, in any form that [`~ccpo.team.topology.make_topology`] takes, e.g. `"think_solve"`.
            generate, outcome, backend, seed: As for [`from_pretrained`].
            sampling: Arguments of all generators, e.g. `temperature`.

        Returns:
            [`Team`]

        Raises:
            `ValueError`: If the topology is wrong, or if an agent has no model.
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
            problems (`list`, or one problem):
                Texts or chat messages, in the same form as the dataset's column `prompt` in training.
            batch_size (`int`, defaults to 64): How many problems are answered at once.

        Returns:
            `list[TeamAnswer]`: The answers, in the order of the problems. For one problem a single [`TeamAnswer`].

        Raises:
            `ValueError`: If a problem alone does not fit into the context of a model, or if `batch_size` is below 1.
            `TypeError`: If a problem is neither a text nor chat messages.
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
        Answer one batch of problems.

        Args:
            problems (`list`): Texts or chat messages.
            given (`Mapping[str, list[Completion]]`, *optional*):
                Maps a role to texts for these problems. The role is not asked, and these are taken as what it wrote.
            hear (`Callable`, *optional*):
                Called while a text is written, with the role, the index of the problem, the new piece of text and
                `None`. If it returns `True`, the text ends. When the text is complete, it is called with `""` and the
                [`~ccpo.generation.Completion`]. Only generators that can be watched (`generate(prompts, watch=…)`)
                give pieces. They may call it on several threads.

        Returns:
            `list[TeamAnswer]`: The answers, in the order of the problems.
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
        """The answers of a batch in which each role wrote one text for each problem."""
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
    """The agents that need no model, because all of their roles have a generator."""
    return {
        agent for agent in topology.agents if agent in given or all(role in given for role in topology.roles_of(agent))
    }


def _is_one(problems: Any) -> bool:
    """Whether this is a single problem: a text, or the messages of one conversation."""
    return isinstance(problems, str) or (len(problems) > 0 and isinstance(problems[0], Mapping))
