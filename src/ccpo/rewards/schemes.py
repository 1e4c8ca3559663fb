"""Which credit schemes work with which teams and with which advantage estimators."""

from typing import Any

from ..team.topology import Topology
from ..verifier.clusters import check_equality
from .base import CreditAllocator
from .contextual import ContextualCredit
from .counterfactual import CounterfactualCredit
from .cross_improvement import CrossImprovementCredit
from .self_evaluated import SelfEvaluatedCredit
from .shared import SharedCredit
from .vote import VoteCredit

ESTIMATORS = ("group", "reinforce++", "reinforce++-baseline", "counterfactual", "robust")
# For each scheme its class, the teams that it is for, and, for each estimator that it refuses, the reason.
_GIVES_ADVANTAGES = "it gives finished advantages, which an estimator must not change"
_NO_REMOVAL = "this estimator needs the team's outcome without a role, which this scheme never asks for"
TABLE: dict[str, tuple[type[CreditAllocator], str, dict[str, str]]] = {
    "shared": (SharedCredit, "any; 'counterfactual' in chains", {}),
    "ccpo": (CounterfactualCredit, "chains; `history` in teams of two", {}),
    "sepo": (
        SelfEvaluatedCredit,
        "chains",
        {"counterfactual": "this estimator would ignore the ratings"},
    ),
    "vote": (VoteCredit, "teams with `answer: vote`", {"counterfactual": _NO_REMOVAL}),
    "dacr": (CrossImprovementCredit, "`answer_critique_rewrite`", {"counterfactual": _NO_REMOVAL}),
    "c3": (
        ContextualCredit,
        "chains",
        dict.fromkeys(ESTIMATORS[1:], _GIVES_ADVANTAGES),
    ),
}
SCHEMES = {name: cls for name, (cls, _, _) in TABLE.items()}


def table_of_schemes() -> str:
    """The table as Markdown. The docs contain it."""
    head = ["| `credit` | teams | " + " | ".join(f"`{name}`" for name in ESTIMATORS) + " |"]
    head.append("| --- " * (len(ESTIMATORS) + 2) + "|")
    for name, (_, teams, refused) in TABLE.items():
        cells = ("no" if estimator in refused else "yes" for estimator in ESTIMATORS)
        head.append(f"| `{name}` | {teams} | " + " | ".join(cells) + " |")
    return "\n".join(head)


def check_scheme(
    allocator: CreditAllocator, topology: Topology, args: Any, branches: tuple[int, ...] | None = None
) -> None:
    """
    Check that a scheme can divide credit in a team and works with the advantage estimator.

    Args:
        allocator ([`CreditAllocator`]): The scheme.
        topology ([`Topology`]): The team.
        args ([`MultiAgentGRPOConfig`]): Says which estimator is used and how rewards are scaled.
        branches (`tuple[int, ...]`, *optional*):
            For each role, how many of its texts continue one text of the role before it. Defaults to the topology's.

    Raises:
        `ValueError`: If it cannot, or does not. The message says why.
    """
    name, estimator = allocator.__name__, args.advantage_estimator
    if why := allocator.refuses(topology):
        raise ValueError(f"`{name}` cannot divide credit in this `topology`: {why} Use SharedCredit, or another team.")
    branches = topology.branches() if branches is None else branches
    several = {role: number for role, number in zip(topology.role_names, branches, strict=True) if number > 1}
    if several and not allocator.branching:
        raise ValueError(
            f"`{allocator.__name__}` works only if each text is continued by one text of the next role, but "
            f"`branches` (`num_solves` for the last role) are {several}. Leave them out, and raise "
            "`num_generations` instead."
        )
    refused = next((row[2] for row in TABLE.values() if isinstance(allocator, row[0])), {})
    if allocator.gives_advantages:
        refused = dict.fromkeys(ESTIMATORS[1:], _GIVES_ADVANTAGES)
    if estimator in refused:
        raise ValueError(
            f"`advantage_estimator={estimator!r}` does not work with `{name}`: {refused[estimator]}. Set "
            "`advantage_estimator='group'`."
        )
    if estimator == "counterfactual" and not (topology.is_chain and len(topology.roles) > 1):
        raise ValueError(
            "`advantage_estimator='counterfactual'` needs a chain of several roles, but the topology has the "
            f"roles {list(topology.role_names)} ({topology.kind}). Set `advantage_estimator='group'`."
        )
    if allocator.gives_advantages and args.scale_rewards != "none":
        raise ValueError(
            f"`scale_rewards={args.scale_rewards!r}` does not work with `{name}`, which gives finished "
            "advantages. Set `scale_rewards='none'`."
        )
    if allocator.gives_advantages and args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"`multi_objective_aggregation={args.multi_objective_aggregation!r}` does not work with `{name}`, "
            "whose advantages are not normalised. Set `multi_objective_aggregation='sum_then_normalize'`."
        )
    if estimator == "counterfactual" and getattr(allocator, "history", None) is not None:
        raise ValueError(
            f"`advantage_estimator='counterfactual'` does not work with `history` of `{name}`, which it would "
            "ignore. Set `advantage_estimator='group'`, or leave `history` out."
        )
    if topology.answer == "vote":
        check_equality(allocator.outcome)


def check_sum(allocators: list[CreditAllocator]) -> None:
    """Raise a `ValueError` if some of the schemes give rewards and others advantages, which cannot be summed."""
    kinds = {allocator.gives_advantages for allocator in allocators}
    if len(kinds) > 1:
        names = {allocator.__name__: allocator.gives_advantages for allocator in allocators}
        raise ValueError(
            "`reward_funcs` has functions that give rewards and functions that give finished advantages "
            f"({names}: true means advantages). They cannot be summed. Use one kind."
        )


def check_siblings(
    allocator: CreditAllocator, topology: Topology, branches: tuple[int, ...], group: int, trained: tuple[str, ...]
) -> None:
    """
    Check that C3 can train every agent: at least one of its roles must have texts with siblings.

    Args:
        allocator ([`CreditAllocator`]): The scheme. Only C3 is checked.
        topology ([`Topology`]): The team.
        branches (`tuple[int, ...]`): For each role, how many of its texts continue one text of the role before it.
        group (`int`): G, how many texts the first role writes about a problem.
        trained (`tuple[str, ...]`): The agents that are trained.

    Raises:
        `ValueError`: If an agent has no role with siblings.
    """
    siblings = dict(zip(topology.role_names, (group, *branches[1:]), strict=True))
    for agent in trained if isinstance(allocator, ContextualCredit) else ():
        roles = topology.roles_of(agent)
        if all(siblings[role] < 2 for role in roles):
            last = topology.role_names[-1] in roles
            remedy = "`num_solves` >= 2" if last else f"`branches` >= 2 of role {roles[-1]!r}"
            raise ValueError(
                f"`{allocator.__name__}` compares texts that continue the same text, but each text of the "
                f"roles {list(roles)} is the only one: the agent {agent!r} would never be trained. Set "
                f"{remedy}."
            )
