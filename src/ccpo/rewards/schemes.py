"""Which schemes go with which teams and estimators, and where a credit is provably shared credit."""

import math
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
# Scheme -> its class, the teams that it is for, and why it refuses an estimator.
_GIVES_ADVANTAGES = "it gives advantages, which go to the loss as they are"
_NO_REMOVAL = "A = v - b needs the team without a role, and this scheme never sees it"
TABLE: dict[str, tuple[type[CreditAllocator], str, dict[str, str]]] = {
    "shared": (SharedCredit, "any; 'counterfactual' in chains", {}),
    "ccpo": (CounterfactualCredit, "chains; `history` in teams of two", {}),
    "sepo": (SelfEvaluatedCredit, "chains", {"counterfactual": "A = v - b leaves the ratings out"}),
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
    """The table as Markdown, as the docs have it."""
    head = ["| `credit` | teams | " + " | ".join(f"`{name}`" for name in ESTIMATORS) + " |"]
    head.append("| --- " * (len(ESTIMATORS) + 2) + "|")
    for name, (_, teams, refused) in TABLE.items():
        cells = ("no" if estimator in refused else "yes" for estimator in ESTIMATORS)
        head.append(f"| `{name}` | {teams} | " + " | ".join(cells) + " |")
    return "\n".join(head)


def check_scheme(allocator: CreditAllocator, topology: Topology, args: Any) -> None:
    """
    Refuse a scheme that cannot divide credit in this team, or that does not go with the estimator.

    Args:
        allocator ([`CreditAllocator`]): the scheme.
        topology ([`Topology`]): the team.
        args ([`MultiAgentGRPOConfig`]): the estimator and how rewards are scaled.

    Raises:
        `ValueError`: with the reason.
    """
    name, estimator = allocator.__name__, args.advantage_estimator
    if why := allocator.refuses(topology):
        raise ValueError(f"`{name}` cannot divide credit in this `topology`: {why} Use SharedCredit, or another team.")
    refused = next((row[2] for row in TABLE.values() if isinstance(allocator, row[0])), {})
    if allocator.gives_advantages:
        refused = dict.fromkeys(ESTIMATORS[1:], _GIVES_ADVANTAGES)
    if estimator in refused:
        raise ValueError(
            f"`advantage_estimator={estimator!r}` does not go with `{name}`: {refused[estimator]}. Set "
            "`advantage_estimator='group'`."
        )
    if estimator == "counterfactual" and not (topology.is_chain and len(topology.roles) > 1):
        raise ValueError(
            f"`advantage_estimator='counterfactual'` needs a chain of several roles, and the topology has "
            f"{list(topology.role_names)} ({topology.kind}). Set `advantage_estimator='group'`."
        )
    if allocator.gives_advantages and args.scale_rewards != "none":
        raise ValueError(
            f"`scale_rewards={args.scale_rewards!r}` does not go with `{name}`, which gives advantages. Set "
            "`scale_rewards='none'`."
        )
    if topology.answer == "vote":
        check_equality(allocator.outcome)


def check_sum(allocators: list[CreditAllocator]) -> None:
    """Refuse rewards and advantages in one sum."""
    kinds = {allocator.gives_advantages for allocator in allocators}
    if len(kinds) > 1:
        names = {allocator.__name__: allocator.gives_advantages for allocator in allocators}
        raise ValueError(
            f"`reward_funcs` gives rewards and advantages together ({names}: true gives advantages), which cannot be "
            "summed. Use one kind."
        )


def check_siblings(
    allocator: CreditAllocator, topology: Topology, branches: tuple[int, ...], group: int, trained: tuple[str, ...]
) -> None:
    """
    Refuse a scheme of advantages under which an agent would never be trained: none of its roles has siblings.

    Args:
        allocator ([`CreditAllocator`]): the scheme.
        topology ([`Topology`]): the team.
        branches (`tuple[int, ...]`): how many texts continue one, by role.
        group (`int`): G, texts of the first role.
        trained (`tuple[str, ...]`): the agents that are trained.

    Raises:
        `ValueError`: with the agent, the number and the remedy.
    """
    siblings = dict(zip(topology.role_names, (group, *branches[1:]), strict=True))
    for agent in trained if allocator.gives_advantages else ():
        roles = topology.roles_of(agent)
        if all(siblings[role] < 2 for role in roles):
            last = topology.role_names[-1] in roles
            remedy = "`num_solves` >= 2" if last else f"`branches` >= 2 of {roles[-1]!r}"
            raise ValueError(
                f"`{allocator.__name__}` compares texts that continue the same one, and those of {list(roles)} have "
                f"no siblings: the agent {agent!r} would never be trained. Set {remedy}."
            )


def find_placebos(
    allocator: CreditAllocator, topology: Topology, branches: tuple[int, ...], args: Any
) -> dict[str, str]:
    """
    The roles whose credit is provably shared credit up to a factor for each prompt, with the factor in words.

    A baseline that is constant in a group has been subtracted with the group's mean already. What is left of a bonus
    is a factor: with two-valued outcomes for `"event"`, and always for `"difference"`.

    Args:
        allocator ([`CreditAllocator`]): the scheme.
        topology ([`Topology`]): the team.
        branches (`tuple[int, ...]`): how many texts continue one, by role.
        args ([`MultiAgentGRPOConfig`]): estimator and removals.

    Returns:
        `dict[str, str]`: role -> the factor; empty where the credit carries information.
    """
    if not isinstance(allocator, CounterfactualCredit) or args.advantage_estimator not in (
        "group",
        "reinforce++-baseline",
    ):
        return {}
    if allocator.baseline != "group":
        return {}
    names, coef, found = topology.role_names, allocator.coef, {}
    if allocator.history is not None:
        if math.prod(branches[1:]) > 1:
            return {}
        return dict.fromkeys(names, "a factor of the prompt and the history")
    for k, name in enumerate(names[:-1]):
        in_context = args.removal == "context" and k > 0
        leaves = math.prod(branches[k + 1 :])  # below a text
        if coef == 0 or in_context:
            continue
        if allocator.bonus == "difference":
            found[name] = f"{1 + coef / 2:g}"
        elif leaves == 1:
            found[name] = f"{1 + coef / 2:g} where the team without it is mostly right or mostly wrong, else 1"
    return found
