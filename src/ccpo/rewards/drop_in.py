"""
The credit schemes as reward functions of TRL's own `GRPOTrainer`.

That trainer trains one model, which plays the first role of a chain. Generators write the texts of the other roles.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..calls import call_outcome, unanswered
from ..generation.inputs import TEXT_FOR_A_CHAT_MODEL
from ..team.answers import reader_of
from ..team.completions import completion_text
from ..team.prompts import Prompt, problem_text
from ..team.rollout import Episodes, Passes, run_team
from .evidence import TeamOutcomes

_GENERATORS = "TransformersGenerator(model) or OpenAIGenerator(model, base_url=...)"


class RewardFunction:
    """The part of [`CreditAllocator`] that makes it a TRL reward function. It uses the attributes of that class."""

    drop_in_fields = ("partner", "partners")  # arguments that are used only with TRL's own trainer

    def __call__(self, prompts: list[Prompt], completions: list, **kwargs: Any) -> list[float | None]:
        """
        Compute the rewards of the first role of a chain, as a TRL reward function.

        The partners write the texts of the other roles, the outcome function judges the answers, and the scheme gives
        credit. TRL may split the group of a problem over several processes. So the outcomes of all processes are
        gathered first, and each process returns the rewards of its own rows. Rows with the same problem form one
        group, even if the problem occurs twice in a batch. If prompts are chat messages, the partners get the problem
        alone, without the first role's system message.

        Args:
            prompts (`list`):
                The prompts of the first role. If the dataset has a column `problem`, the problem is read from there,
                else from the prompt.
            completions (`list`): The texts of the first role.
            kwargs: The dataset's columns, and TRL's functions `log_metric` and `log_extra`.

        Returns:
            `list[float | None]`: The reward of each completion; `None` if it cannot be scored.

        Raises:
            `ValueError`: If the team is not a chain of several roles, if the partners do not match its roles, if the
                scheme cannot use the outcomes, or if TRL's trainer is set to change advantages.
            `TypeError`: If the column `problem` does not hold strings.
        """
        topology, generate = self.topology, self._partners()
        problems = kwargs.get("problem")
        if problems is None:
            self._warn_once(
                "problem",
                "The dataset has no column `problem`, so the other roles are asked with the prompt of the "
                "role in training. If this prompt contains instructions for that role, add a column "
                "`problem` with the problem alone.",
            )
            problems = [problem_text(prompt) for prompt in prompts]
        if bad := [problem for problem in problems if not isinstance(problem, str)]:
            raise TypeError(f"The column `problem` must hold texts, got {bad[0]!r}.")
        self._check_template(prompts, kwargs)
        self._check_trainer(kwargs)
        first, last = topology.role_names[0], topology.role_names[-1]
        asked = [_like(prompt, problem) for prompt, problem in zip(prompts, problems, strict=True)]
        needed = self.evidence(topology, (first,))
        episodes = run_team(
            topology,
            asked,
            generate,
            given={first: [completion_text(completion) for completion in completions]},
            removals={first: Passes(tuple(range(len(asked))))} if first in needed.removals else {},
            reader=reader_of(self.outcome),
        )
        alone = episodes.without[first][last].texts if episodes.without else []
        rows = episodes.said[last].rows + list(range(len(asked)))[: len(alone)]
        outcomes = self._judge([asked[row] for row in rows], rows, episodes.answers + alone, kwargs)
        joint, solo = outcomes[: len(episodes.answers)], outcomes[len(episodes.answers) :]
        shares = None
        if needed.ratings:
            shares = self.rate({**generate, first: self._first_rater()}, episodes, torch.tensor(joint)).tolist()
        size = len(joint) // len(asked)
        parts = [
            (
                repr(problem),
                joint[i * size : (i + 1) * size],
                solo[i] if solo else None,
                shares and shares[i * size : (i + 1) * size],
            )
            for i, problem in enumerate(problems)
        ]
        rewards = self._allocate_rows(gather_object(parts), offset=self._offset(len(parts)), count=len(parts))
        self._log(episodes, joint, solo, kwargs)
        return rewards

    def _partners(self) -> dict[str, Callable]:
        """
        The generator of each role but the first.

        Raises:
            `ValueError`: If the scheme learns during a run, or if the team or its partners do not fit.
        """
        first, *others = self.topology.role_names
        if state := self.state_dict():
            learned = ", ".join(f"`{name}`" for name in state)
            raise ValueError(
                f"`{self.__name__}` learns during a run ({learned}), but TRL's GRPOTrainer does not save what "
                "it has learned. Train with MultiAgentGRPOTrainer, or switch that option off."
            )
        if (why := self.refuses(self.topology)) or not self.topology.is_chain or not others:
            why = why or "as a reward function it trains the first role of a chain of several."
            raise ValueError(f"`{self.__name__}` cannot train the first role of this `topology`: {why}")
        if self.partners is not None and not isinstance(self.partners, Mapping):
            raise ValueError(
                f"`partners` must map the roles {others} to generators, got {self.partners!r:.80}. Write "
                "{role: ...}."
            )
        partners = dict(self.partners or {})
        if self.partner is not None:
            if len(others) > 1 or partners:
                raise ValueError(
                    "`partner` is the generator of one other role. Set `partners` instead, with a generator "
                    f"for each of {others}."
                )
            partners = {others[0]: self.partner}
        if unknown := sorted(set(partners) - set(others), key=str):
            raise ValueError(f"`partners` names {unknown}, which are not roles beside {first!r}. Those are {others}.")
        if missing := [name for name in others if name not in partners]:
            field = "partner" if len(others) == 1 else "partners"
            raise ValueError(
                f"`{self.__name__}` trains only the {first} here, so the roles {missing} need generators that "
                f"write their texts. Pass `{field}`, e.g. {_GENERATORS}."
            )
        for name, partner in partners.items():
            if not callable(partner):
                field = "partner" if self.partner is not None else f"partners[{name!r}]"
                raise ValueError(f"`{field}` must be a generator, got {partner!r:.80}. Give one, e.g. {_GENERATORS}.")
        return partners

    def _check_template(self, prompts: list[Prompt], kwargs: dict[str, Any]) -> None:
        """
        Log once that a chat model is trained on plain texts, if that is so.

        TRL passes no tokenizer to a reward function. But `log_metric` is a method of the trainer, and the trainer has
        the tokenizer of the trained role. A [`TransformersGenerator`] as the partner checks its own tokenizer.
        """
        trainer = getattr(kwargs.get("log_metric"), "__self__", None)
        processing_class = getattr(trainer, "processing_class", None)
        if isinstance(prompts[0], str) and getattr(processing_class, "chat_template", None):
            self._warn_once("template", TEXT_FOR_A_CHAT_MODEL, f"The {self.topology.role_names[0]}")

    def _check_trainer(self, kwargs: dict[str, Any]) -> None:
        """
        Check what TRL's trainer will do to the rewards, if the trainer can be reached through `log_metric`.

        Raises:
            `ValueError`: If the scheme gives advantages and the trainer would divide them by a standard deviation.
        """
        trainer = getattr(kwargs.get("log_metric"), "__self__", None)
        args = getattr(trainer, "args", None)
        scale = getattr(args, "scale_rewards", "none")
        if self.gives_advantages and scale != "none":
            raise ValueError(
                f"`scale_rewards={scale!r}` does not work with `{self.__name__}`, which gives finished "
                "advantages: TRL would divide them by their standard deviation. Set `scale_rewards='none'`."
            )
        if args is not None:
            # With several reward functions, TRL divides by the standard deviation of their sum
            scale = "none" if len(getattr(trainer, "reward_funcs", ())) > 1 else scale
            estimator = SimpleNamespace(advantage_estimator="group", scale_rewards=scale, removal="prompt")
            first = self.topology.role_names[0]
            placebos = self.find_placebos(self.topology, self.topology.branches(), estimator)
            if first in placebos:
                self.announce_placebo({first: placebos[first]}, "group")

    @staticmethod
    def _offset(count: int) -> int:
        """The index of this process's first row among the gathered rows."""
        state = PartialState()
        counts = gather_object([count])
        return sum(counts[: state.process_index]) if state.num_processes > 1 else 0

    def _judge(self, prompts: list, rows: list[int], answers: list[str], kwargs: dict[str, Any]) -> list[float]:
        """Judge answers; `rows` gives for each prompt the row of the batch from which its columns are taken."""
        columns = _columns(kwargs)
        scalars = {k: v for k, v in kwargs.items() if k not in columns and k not in ("log_extra", "completion_ids")}
        columns = {name: [values[row] for row in rows] for name, values in columns.items()}
        completions = [
            answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return call_outcome(
            self.outcome, len(rows), prompts=prompts, completions=completions, **{**scalars, **columns}
        )

    def _allocate_rows(self, rows: list[tuple], offset: int, count: int) -> list[float | None]:
        """
        Compute the rewards of `count` rows from `offset` on.

        The gathered rows are laid out as (P, G, …). Groups smaller than the largest one are padded with NaN.
        """
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row[0], []).append(i)
        size, nan = max(map(len, groups.values())), float("nan")

        def column(c: int) -> torch.Tensor | None:
            """Item c of each row, as a tensor of shape `(P, G, …)`."""
            if rows[0][c] is None:
                return None
            values = torch.tensor([row[c] for row in rows], dtype=torch.float32)
            padding = torch.full_like(values[:1], nan)
            padded = [torch.cat([values[g], *[padding] * (size - len(g))]) for g in groups.values()]
            return torch.stack(padded)

        joint, solo, shares = (column(c) for c in (1, 2, 3))
        self.check_outcomes(joint, solo)
        first, last = self.topology.role_names[0], self.topology.role_names[-1]
        outcomes = TeamOutcomes(
            self.topology,
            self.topology.branches(),
            own={last: joint.flatten(1)},
            without={} if solo is None else {first: solo},
            shares=None if shares is None else shares.flatten(1, 2),
        )
        reward = self.allocate(outcomes)[first]  # (P, G)
        flat: list[float | None] = [None] * len(rows)
        for p, group in enumerate(groups.values()):
            for g, i in enumerate(group):
                value = reward[p, g].item()
                flat[i] = None if value != value else value
        return flat[offset : offset + count]

    def _log(self, episodes: Episodes, joint: list[float], solo: list[float], kwargs: dict[str, Any]) -> None:
        """Log the outcomes under the same names as [`MultiAgentGRPOTrainer`], and the texts as extra columns."""
        topology = episodes.topology
        first, last = topology.role_names[0], topology.role_names[-1]
        if (missing := unanswered(self.outcome, episodes.answers)) is not None:
            self.warn_of_no_answers(sum(missing), len(missing))
        if (log_metric := kwargs.get("log_metric")) is not None:
            for name, values in (("credit/joint_accuracy", joint), (f"credit/without_{first}_accuracy", solo)):
                scored = [value > 0 for value in values if value == value]
                if scored:
                    log_metric(topology.label(name), sum(scored) / len(scored))
            log_metric("credit/leak_rate", sum(episodes.leaked) / max(1, len(episodes.leaked)))
            for name in topology.role_names[1:]:
                if topology[name].reads:
                    cut = episodes.cuts(name)
                    log_metric(f"rollout/{name}_cut_rate", sum(cut) / len(cut))
            if missing is not None:
                log_metric("credit/no_answer_rate", sum(missing) / len(missing))
        if (log_extra := kwargs.get("log_extra")) is not None:
            size = len(episodes.answers) // len(episodes.prompts)
            for name in topology.role_names[1:]:  # for each row the first text of the role
                texts = episodes.said[name].texts
                log_extra(topology.label(name), texts[:: len(texts) // len(episodes.prompts)])
            log_extra("outcome", joint[::size])
            if solo:
                log_extra(topology.label(f"without_{first}"), episodes.without[first][last].texts)


def _columns(kwargs: dict[str, Any]) -> dict[str, list]:
    """The dataset's columns among the keyword arguments of a reward function."""
    return {k: v for k, v in kwargs.items() if isinstance(v, list) and k != "completion_ids"}


def _like(prompt: Prompt, problem: str) -> Prompt:
    """The problem as a prompt of the same kind, a text or chat messages, without the role's own instructions."""
    return problem if isinstance(prompt, str) else [{"role": "user", "content": problem}]
