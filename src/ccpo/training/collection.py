"""[`CollectionMixin`] runs the team on a generation batch with the policies in training, and has it judged."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import gather
from trl.data_utils import is_conversational

from ..generation.inputs import render_prompts
from ..rewards import TeamOutcomes
from ..rewards.evidence import at_leaves, removal_outcome
from ..rewards.metrics import is_right
from ..team.answers import reader_of
from ..team.rollout import Episodes, Passes, Texts, assign_solos, build_role_prompt, run_team
from ..verifier.clusters import cluster_answers
from .clock import RATING, UPDATE, VERIFY
from .episodes import as_text
from .generator import PolicyGenerator, Sample
from .numbers import LENGTHS


@dataclass
class Rollout:
    """
    What the team wrote about one batch: the texts of this process, and the outcomes of all processes.

    Attributes:
        episodes ([`~ccpo.team.rollout.Episodes`]): What the team wrote.
        samples (`dict[str, list]`): Maps each role to the token ids of its texts.
        outcomes (`list[TeamOutcomes]`): The outcomes by each of the F outcome functions, with the evidence for its
            scheme.
        extras (`dict[str, list]`):
            More columns of the completions table, with a row for each leaf: the dataset's `solution`, and what outcome
            functions log.
        counted (`dict[str, list[bool] | None]`):
            Maps each removed role to whether each pass of all processes counts. `None` means that all count.
        shown (`frozenset[str]`): The roles without which the team was run only for the metrics.
        arms (`dict[str, float]`): The metrics of an evaluation's other arms.
    """

    episodes: Episodes
    samples: dict[str, list[Sample]]
    outcomes: list[TeamOutcomes]
    extras: dict[str, list]
    counted: dict[str, list[bool] | None] = field(default_factory=dict)
    shown: frozenset[str] = frozenset()
    arms: dict[str, float] = field(default_factory=dict)

    @property
    def evidence(self) -> list[TeamOutcomes]:
        """The outcomes without the passes that were run only for the metrics."""
        kept = [
            {removed: values for removed, values in seen.without.items() if removed not in self.shown}
            for seen in self.outcomes
        ]
        return [replace(seen, without=without) for seen, without in zip(self.outcomes, kept, strict=True)]


class CollectionMixin:
    """
    Part of the trainer: runs the team on a batch, has it judged, and gathers what the credit of this step needs.

    It overrides `_tokenize_prompts`, which TRL uses if the team has one role. Messages that a chat template refuses
    are then changed to a form that it accepts.
    """

    def _roll_out(self, inputs: list[dict[str, Any]], in_turn: tuple[str, ...]) -> Rollout:
        """
        Run the team on a batch, judge it over all processes, and collect what else the credit of this step needs.

        Args:
            inputs (`list[dict]`): The rows of this process.
            in_turn (`tuple[str, ...]`): The roles that are trained from this batch.
        """
        clock, topology = self._clock, self.topology
        training = self.model.training
        group = self.num_generations if training else self.num_generations_eval
        needed, shown = self._seen_without(in_turn)
        removals, valid = self._removals(len(inputs), group, needed | shown)
        generators = self._generators()
        reader = reader_of(self.allocators[self._judge()].outcome)
        if not training:
            clock.tokens["eval"].clear()  # an earlier evaluation may have failed
        tokens = clock.tokens["train" if training else "eval"]

        @contextmanager
        def around(generator: PolicyGenerator, parts: list[tuple[str, int]]) -> Iterator[None]:
            start = len(generator.samples)
            with clock.measure("call"):
                yield
            drawn: dict[str, int] = {}
            for arm, count in parts:
                sizes = [len(ids) for _, ids, _ in generator.samples[start : start + count]]
                drawn[arm] = drawn.get(arm, 0) + sum(sizes)
                start += count
            clock.split("call", drawn)
            for arm, count in drawn.items():
                tokens[arm] += count

        with clock.measure("draw"):
            episodes = run_team(
                topology,
                [row["prompt"] for row in inputs],
                generators,
                branches=self.branches,
                removals=removals,
                reader=reader,
                around=around,
            )
        drawing = [arm for arm in clock.arms if arm not in (RATING, VERIFY, UPDATE)]
        clock.split("draw", {arm: tokens[arm] for arm in drawing if arm in tokens})  # the time for building prompts
        asked = {id(generator): len(generator.samples) for generator in generators.values()}
        samples = {
            role: generators[role].samples[said.start : said.start + len(said.texts)]
            for role, said in episodes.said.items()
        }
        outcomes, extras = self._outcomes(inputs, episodes, generators, valid, group, tokens)
        self._rate(outcomes, episodes, generators, in_turn, group)
        for generator in {id(g): g for g in generators.values()}.values():
            rated = generator.samples[asked[id(generator)] :]
            tokens[RATING] += generator.scored_tokens + sum(len(ids) for _, ids, _ in rated)
        arms = {} if training else self._evaluate_arms(inputs, episodes, group)
        golds = [inputs[row].get("solution") for row in episodes.said[topology.role_names[-1]].rows]
        extras = ({"solution": golds} if "solution" in inputs[0] else {}) | extras
        return Rollout(episodes, samples, outcomes, extras, valid, frozenset(shown - needed), arms)

    def _seen_without(self, in_turn: tuple[str, ...]) -> tuple[set[str], set[str]]:
        """The roles without which the team is run for credit or an evaluation, and those only for the metrics."""
        topology, names = self.topology, self.topology.role_names
        removable = {name for name in names if topology.is_chain and topology.removable(name)}
        needed: set[str] = set()
        if not self.model.training and "without" in self.args.eval_arms:
            needed |= removable
        if self.args.advantage_estimator == "counterfactual":
            needed |= {name for name in names[:-1] if name in in_turn}
        for allocator in self.allocators:
            wanted = allocator.evidence(topology, in_turn).removals
            skips = self.args.skip_uninformative_solos and self.model.training
            skipped = allocator.find_placebos(topology, self.branches, self.args) if skips else {}
            needed |= {name for name in wanted if name not in skipped}
        return needed, removable if self.model.training and self._shows_removals() else set()

    def _shows_removals(self) -> bool:
        """Whether passes without a role are run for the metrics now, by `removal_eval_steps`."""
        args, period = self.args, self.args.removal_eval_steps
        if period is None:
            return False
        # Batch n begins in step n·micro // accumulation. Compare with the step in which the last batch began.
        micro, accumulation = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
        step = self.state.global_step
        before = (-(-step * accumulation // micro) - 1) * micro // accumulation
        return step == 0 or step // period > before // period

    def _removals(
        self, rows: int, group: int, removed: set[str]
    ) -> tuple[dict[str, Passes], dict[str, list[bool] | None]]:
        """The passes without each of the roles in this process, and which passes of all processes count."""
        names, passes, valid = self.topology.role_names, {}, {}
        for name in (name for name in names if name in removed):
            place = names.index(name)
            if self.args.removal == "context" and place > 0:
                contexts = rows * math.prod(self.branches[:place])
                number = self.args.num_solos or 1
                passes[name] = Passes(tuple(c for c in range(contexts) for _ in range(number)), in_context=True)
                valid[name] = None
            else:
                state = self.accelerator
                number = self.args.num_solos or group
                mine, counts = assign_solos(rows, state.num_processes, group, number)
                passes[name], valid[name] = Passes(tuple(mine[state.process_index])), counts
        return passes, valid

    def _generators(self) -> dict[str, PolicyGenerator]:
        """Maps each role to its generator. Roles of one policy with equal sampling share a generator and its calls."""
        generators: dict[str, PolicyGenerator] = {}
        made: dict[str, PolicyGenerator] = {}
        for role in self.topology.role_names:
            generators[role] = made.setdefault(self._policy_key(role), PolicyGenerator(self, role))
        return generators

    def _policy_key(self, role: str, length: bool = True) -> str:
        """A key that is equal for roles whose texts one call can draw: same policy, same sampling, same length."""
        agent = self.topology.agent_of(role)
        policy = "shared" if self.args.policy_sharing == "shared" else agent
        sampling = self.args.sampling_of(role, agent)
        return repr((policy, sorted((k, v) for k, v in sampling.items() if length or k not in LENGTHS)))

    def _ask_alone(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Build the rows for a team of one role, with its prompt if it has one. Solutions go to the table."""
        (role,) = self.topology.roles
        if self.log_completions and "solution" in inputs[0]:
            self._pending_extra_logs["solution"].extend(as_text(row["solution"]) for row in inputs)
        if role.prompt is None:
            return inputs
        return [{**row, "prompt": build_role_prompt(self.topology, role, row["prompt"], {})} for row in inputs]

    def _tokenize_prompts(self, prompts: list) -> tuple:
        if not self.topology.is_solo or self.environment_factories is not None:
            return super()._tokenize_prompts(prompts)
        return render_prompts(prompts, super()._tokenize_prompts, f"role {self.roles[0]!r}", self.folded)

    def _judge(self) -> int:
        """The index of the first reward function that judges answers as right or wrong. Accuracies use it."""
        return next((f for f, allocator in enumerate(self.allocators) if allocator.strict_outcomes), 0)

    def _outcomes(
        self,
        inputs: list[dict[str, Any]],
        episodes: Episodes,
        generators: dict[str, PolicyGenerator],
        valid: dict[str, list[bool] | None],
        group: int,
        tokens: dict[str, int],
        roles: tuple[str, ...] | None = None,
    ) -> tuple[list[TeamOutcomes], dict[str, list]]:
        """
        Judge the texts of the judged roles (or of `roles`) and of passes without a role, with one call in all.

        Returns:
            `tuple[list[TeamOutcomes], dict[str, list]]`: The outcomes by each outcome function, and what these log.
        """
        topology, state = self.topology, self.accelerator
        judged = {(None, role): episodes.said[role] for role in roles or topology.judged}
        for removed, said in episodes.without.items():
            judged |= {(removed, role): said[role] for role in topology.answer_roles if role in said}
        rows = [row for texts in judged.values() for row in texts.rows]
        texts = [text for said in judged.values() for text in said.texts]
        ids = [ids for (_, role), said in judged.items() for ids in _ids(generators[role], said)]
        asked = [inputs[row] for row in rows]
        chat = is_conversational(inputs[0])
        with self._clock.measure(VERIFY):
            values = self._calculate_rewards(
                asked,
                [row["prompt"] for row in asked],
                [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
                ids,
            ).view(state.num_processes, len(asked), -1)  # (W, judged, F)
        tokens[VERIFY] += sum(map(len, ids))
        own, without, extras, start = {}, {removed: {} for removed in episodes.without}, {}, 0
        pending = dict(self._pending_extra_logs)
        self._pending_extra_logs.clear()
        for (removed, role), said in judged.items():
            part, count = values[:, start : start + len(said.texts)], len(said.texts)
            if removed is None:
                own[role] = part.reshape(-1, group * episodes.texts_per_row(role), values.size(-1))  # (P, N_j, F)
                if role == topology.role_names[-1]:  # because the table has a row for each leaf
                    extras = {name: column[start : start + count] for name, column in pending.items()}
            else:
                without[removed][role] = self._by_prompt(part, removed, episodes, valid[removed], group)
            start += count
        return [
            self._team_outcomes(f, episodes, {role: values[..., f] for role, values in own.items()}, without, group)
            for f in range(values.size(-1))
        ], extras

    def _by_prompt(
        self, values: torch.Tensor, removed: str, episodes: Episodes, valid: list[bool] | None, group: int
    ) -> torch.Tensor:
        """Arrange outcomes of passes without a role by prompt: `(W, m, F)` -> `(P, S, F)` or `(P, contexts, S, F)`."""
        values = values.flatten(0, 1)
        if valid is not None:
            values = values[torch.tensor(valid)]
            number = sum(valid) // (len(episodes.prompts) * self.accelerator.num_processes // group)
            return values.view(-1, number, values.size(-1))
        place = self.topology.role_names.index(removed)
        contexts = group * math.prod(self.branches[:place])
        return values.view(-1, contexts, self.args.num_solos or 1, values.size(-1))

    def _team_outcomes(
        self, f: int, episodes: Episodes, own: dict[str, torch.Tensor], without: dict[str, dict], group: int
    ) -> TeamOutcomes:
        topology, allocator = self.topology, self.allocators[f]
        clusters = None
        if topology.answer == "vote":
            texts = [list(said) for said in zip(*(episodes.said[r].texts for r in topology.answer_roles), strict=True)]
            mine = cluster_answers(texts, allocator.outcome).to(self.accelerator.device)
            clusters = gather(mine).view(-1, group, len(topology.answer_roles))
        apart = {removed: self._answers_without(removed, values, f, own, group) for removed, values in without.items()}
        allocator.check_outcomes(*own.values(), *(values for said in apart.values() for values in said.values()))
        return TeamOutcomes(
            topology,
            self.branches,
            own,
            clusters,
            without={removed: removal_outcome(topology, said) for removed, said in apart.items()},
            without_right={
                removed: removal_outcome(topology, {role: is_right(values) for role, values in said.items()})
                for removed, said in apart.items()
            },
            training=self.model.training,
        )

    def _answers_without(
        self, removed: str, values: dict[str, torch.Tensor], f: int, own: dict[str, torch.Tensor], group: int
    ) -> dict[str, torch.Tensor]:
        """
        The outcomes of the roles that answer, in passes without a role.

        A role whose text is kept has the same outcome in all passes of a context.
        """
        contexts = group * math.prod(self.branches[: self.topology.role_names.index(removed)])
        return {
            role: values[role][..., f]
            if role in values
            else at_leaves(own[role], contexts).unsqueeze(-1).expand(-1, -1, self.args.num_solos or 1)
            for role in self.topology.answer_roles
        }

    def _rate(
        self,
        outcomes: list[TeamOutcomes],
        episodes: Episodes,
        generators: dict[str, Callable],
        in_turn: tuple[str, ...],
        group: int,
    ) -> None:
        """Ask for the ratings that a scheme needs, and add them to its outcomes."""
        topology, state = self.topology, self.accelerator
        for allocator, seen in zip(self.allocators, outcomes, strict=True):
            if not allocator.evidence(topology, in_turn).ratings:
                continue
            verdicts = seen.team.reshape(state.num_processes, -1)[state.process_index]
            # The last role comes first, because a common engine has its weights. Lengths are ignored, as ratings have
            # a length of their own.
            raters, made = {}, {}
            for role in reversed(topology.role_names):
                raters[role] = made.setdefault(self._policy_key(role, length=False), generators[role])
            with self._clock.measure(RATING):
                shares = allocator.rate(raters, episodes, verdicts.cpu()).to(state.device)  # (leaves, n, n)
            seen.shares = gather(shares).view(*seen.team.shape, *shares.shape[1:])


def _ids(generator: PolicyGenerator, said: Texts) -> list[list[int]]:
    """The token ids of texts that a generator drew. Texts that were given have none."""
    if not said.prompts:
        return [[] for _ in said.texts]
    return [ids for _, ids, _ in generator.samples[said.start : said.start + len(said.texts)]]
