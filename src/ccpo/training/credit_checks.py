"""What can be known to be wrong before any model loads: the credit, and what `role_kwargs` says of whom."""

import logging

from ..ratings import check_rating_prompt
from ..rewards import CounterfactualCredit, CreditAllocator
from ..rewards.schemes import check_scheme, check_siblings, check_sum, find_placebos
from ..team.topology import Topology
from .config import AGENT_KEYS, MultiAgentGRPOConfig

logger = logging.getLogger(__name__)


def check_credit(
    allocators: list[CreditAllocator], topology: Topology, args: MultiAgentGRPOConfig, trained: tuple[str, ...]
) -> None:
    """
    Refuse schemes that do not go with the team, the estimator, each other or the number of passes; announce a placebo.

    Args:
        allocators (`list`): the schemes.
        topology ([`Topology`]): the team.
        args ([`MultiAgentGRPOConfig`]): estimator, texts and removals.
        trained (`tuple[str, ...]`): the agents that are trained.

    Raises:
        `ValueError`: with field, value and remedy.
    """
    branches = topology.branches(args.num_solves)
    check_sum(allocators)
    for allocator in allocators:
        check_scheme(allocator, topology, args)
        if getattr(allocator, "rating_prompt", None) is not None:
            check_rating_prompt(allocator.rating_prompt, topology.role_names)
        check_siblings(allocator, topology, branches, args.num_generations, trained)
        _check_removals(allocator, topology, args, trained)
        _check_paired(allocator, topology, branches, args)
        if placebos := find_placebos(allocator, topology, branches, args):
            announce_placebo(allocator, placebos, args)


def announce_placebo(allocator: CreditAllocator, placebos: dict[str, str], args: MultiAgentGRPOConfig) -> None:
    """Say once in a run that a credit is provably shared credit up to a factor for each prompt."""
    logger.warning(
        "`%s` with `advantage_estimator=%r` is shared credit up to a factor for each prompt: the group's mean has "
        "taken the prompt's baseline out already (factor of the advantages: %s). It orders no two texts of a group "
        "otherwise. Credit that carries information: `num_solves` >= 2 with C3 (`credit: c3`), SEPO, "
        "`removal='context'` for roles after the first. `skip_uninformative_solos=True` leaves the passes out%s.",
        allocator.__name__,
        args.advantage_estimator,
        "; ".join(f"{role}: {factor}" for role, factor in placebos.items()),
        ", as it is set" if args.skip_uninformative_solos else "",
    )


def _check_removals(
    allocator: CreditAllocator, topology: Topology, args: MultiAgentGRPOConfig, trained: tuple[str, ...]
) -> None:
    """The team can be asked without every role whose credit needs it."""
    roles = tuple(role for agent in trained for role in topology.roles_of(agent))
    needed = set(allocator.evidence(topology, roles).removals)
    if args.advantage_estimator == "counterfactual":
        needed |= {role for role in topology.role_names[:-1] if role in roles}
    for role in topology.role_names:
        if role in needed:
            topology.without(role)


def _check_paired(
    allocator: CreditAllocator, topology: Topology, branches: tuple[int, ...], args: MultiAgentGRPOConfig
) -> None:
    if not isinstance(allocator, CounterfactualCredit) or allocator.baseline != "paired":
        return
    texts = args.num_generations
    for k, role in enumerate(topology.role_names[:-1]):
        in_context = args.removal == "context" and k > 0
        texts *= branches[k]
        passes = (args.num_solos or 1) if in_context else _passes(args)
        wanted = branches[k] if in_context else texts
        if passes != wanted:
            what = "texts of a context" if in_context else "texts of a prompt"
            raise ValueError(
                f"`baseline='paired'` needs as many passes without {role!r} as it has {what}, got "
                f"`num_solos={passes}` and {wanted}. Make them equal or use `baseline='group'`."
            )


def _passes(args: MultiAgentGRPOConfig) -> int:
    """Passes without a role for each prompt: `num_solos` counts contexts' passes under `removal="context"`."""
    return (args.num_solos if args.removal == "prompt" else None) or args.num_generations


def check_role_kwargs(args: MultiAgentGRPOConfig, topology: Topology) -> None:
    """
    `role_kwargs` names roles and agents that there are, and gives a role nothing that is its agent's.

    Raises:
        `ValueError`: with the name, the key and the remedy.
    """
    names = list(dict.fromkeys([*topology.role_names, *topology.agents]))
    given = args.role_kwargs or {}
    if unknown := sorted(set(given) - set(names), key=str):
        raise ValueError(f"`role_kwargs` names {unknown}, which the topology does not have; it has {names}.")
    for name, overrides in given.items():
        agents_own = [key for key in AGENT_KEYS if key in overrides]
        if agents_own and name not in topology.agents and len(topology.roles_of(topology.agent_of(name))) > 1:
            agent = topology.agent_of(name)
            raise ValueError(
                f"`role_kwargs[{name!r}]` has {agents_own}, which belong to an agent, and {name!r} is one of the "
                f"roles {list(topology.roles_of(agent))} of {agent!r}. Set them in `role_kwargs[{agent!r}]`."
            )
    policies = {agent: topology.roles_of(agent) for agent in topology.agents}
    if args.policy_sharing != "separate":
        policies = {"all": topology.role_names}
    for roles in policies.values():
        heat = {role: args.for_role(role, "temperature", topology.agent_of(role)) for role in roles}
        if len(set(heat.values())) > 1:
            raise ValueError(
                f"`temperature` of the roles of one model must be one, which is in its log-probabilities, got {heat} "
                f"with `policy_sharing={args.policy_sharing!r}`. Set `temperature`, or that of the agent."
            )
