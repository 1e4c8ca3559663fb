"""Checks of the credit schemes and of the names in `role_kwargs`, before a model loads."""

from collections.abc import Collection
from types import SimpleNamespace

from ..ratings import check_rating_prompt
from ..rewards import CounterfactualCredit, CreditAllocator
from ..rewards.schemes import check_scheme, check_siblings, check_sum
from ..team.topology import Topology
from .config import AGENT_KEYS, MultiAgentGRPOConfig


def check_credit(
    allocators: list[CreditAllocator],
    topology: Topology,
    args: MultiAgentGRPOConfig,
    trained: tuple[str, ...],
    evaluates: bool,
) -> None:
    """
    Check that the credit schemes work with the team, the estimator, each other and the number of passes.

    Args:
        allocators (`list`): The schemes.
        topology ([`Topology`]): The team.
        args ([`MultiAgentGRPOConfig`]): The configuration.
        trained (`tuple[str, ...]`): The agents that are trained.
        evaluates (`bool`): Whether there is a dataset for evaluation.

    Raises:
        `ValueError`: If they do not work together.
    """
    branches = topology.branches(args.num_solves)
    check_sum(allocators)
    for allocator in allocators:
        check_scheme(allocator, topology, args, branches)
        if getattr(allocator, "rating_prompt", None) is not None:
            check_rating_prompt(allocator.rating_prompt, topology.role_names)
        check_siblings(allocator, topology, branches, args.num_generations, trained)
        _check_drop_in(allocator, topology)
        _check_evidence(allocator, topology, trained)
        _check_removals(allocator, topology, args, trained)
        _check_paired(allocator, topology, branches, args)
    _check_idle(allocators, topology, args, evaluates)


def announce_placebos(
    allocators: list[CreditAllocator],
    topology: Topology,
    args: MultiAgentGRPOConfig,
    trained: tuple[str, ...],
    own: Collection[str],
) -> None:
    """
    Warn for each scheme whose credit is provably shared credit up to a factor for each prompt.

    Args:
        allocators, topology, args, trained: As for [`check_credit`].
        own (`Collection[str]`):
            Roles that have rewards of their own. Their standard deviation is that of a sum, so it does not remove the
            factor.
    """
    roles = [role for agent in trained for role in topology.roles_of(agent)]
    branches = topology.branches(args.num_solves)
    in_a_sum = SimpleNamespace(
        advantage_estimator=args.advantage_estimator, scale_rewards="none", removal=args.removal
    )
    for allocator in allocators:
        alone, summed = (allocator.find_placebos(topology, branches, settings) for settings in (args, in_a_sum))
        of_a_sum = roles if len(allocators) > 1 else own
        found = {role: (summed if role in of_a_sum else alone)[role] for role in roles if role in alone}
        if args.skip_uninformative_solos:
            found = dict.fromkeys(found, "1")
        if found:
            allocator._warned.discard("placebo")  # an earlier run may have warned
            also = " `skip_uninformative_solos=True` saves the passes without these roles"
            also += ", as it does in this run." if args.skip_uninformative_solos else "."
            allocator.announce_placebo(found, args.advantage_estimator, also)


def _check_drop_in(allocator: CreditAllocator, topology: Topology) -> None:
    """Refuse arguments that are only for TRL's own trainer, such as partners: this trainer has all roles itself."""
    given = [name for name in allocator.drop_in_fields if getattr(allocator, name) is not None]
    given += ["topology"] if allocator._has_topology and allocator.topology != topology else []
    if given:
        raise ValueError(
            f"`{given[0]}` of `{allocator.__name__}` has no effect here: it is for TRL's own GRPOTrainer, "
            "while this trainer has the models of all roles and its own `topology`. Leave it out."
        )


def _check_evidence(allocator: CreditAllocator, topology: Topology, trained: tuple[str, ...]) -> None:
    """Raise a `ValueError` if the evidence that a scheme asks for cannot be collected."""
    evidence = allocator.evidence(topology, tuple(role for agent in trained for role in topology.roles_of(agent)))
    removals, names = evidence.removals, list(topology.role_names)
    if isinstance(removals, str) or (unknown := [role for role in removals if role not in names]):
        got = repr(removals) if isinstance(removals, str) else unknown
        raise ValueError(
            f"`evidence` of `{allocator.__name__}` asks for `removals` of {got}, which cannot be. Give a "
            f"tuple of names of roles, from {names}."
        )
    if evidence.ratings and type(allocator).rate is CreditAllocator.rate:
        raise ValueError(
            f"`evidence` of `{allocator.__name__}` asks for `ratings`, but the class has no `rate`. Define "
            "it, as SelfEvaluatedCredit does."
        )


def _check_removals(
    allocator: CreditAllocator, topology: Topology, args: MultiAgentGRPOConfig, trained: tuple[str, ...]
) -> None:
    """Raise a `ValueError` if the credit of a role needs the team without it, and the team cannot run so."""
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
    group, in_eval = args.num_generations, args.num_generations_eval
    if args.eval_strategy != "no" and args.num_solos is not None and in_eval not in (None, group):
        raise ValueError(
            "`baseline='paired'` needs as many answers without a role as the role has texts, also in "
            f"evaluation. `num_solos={args.num_solos}` fits `num_generations={group}`, but not "
            f"`num_generations_eval={in_eval}`. Leave `num_generations_eval` out, or use `baseline='group'`."
        )
    texts = group
    for k, role in enumerate(topology.role_names[:-1]):
        in_context = args.removal == "context" and k > 0
        texts *= branches[k]
        passes = args.num_solos or (1 if in_context else args.num_generations)
        wanted = branches[k] if in_context else texts
        if passes != wanted:
            what = "texts for each kept context" if in_context else "texts for each prompt"
            raise ValueError(
                f"`baseline='paired'` needs as many answers without {role!r} as it has {what}, got "
                f"`num_solos={passes}` and {wanted}. Make them equal or use `baseline='group'`."
            )


def _check_idle(
    allocators: list[CreditAllocator], topology: Topology, args: MultiAgentGRPOConfig, evaluates: bool
) -> None:
    """Refuse settings of passes without a role if no such pass is ever run, whichever agents are trained."""
    in_evaluation = topology.is_chain and any(map(topology.removable, topology.role_names))
    seen = evaluates and "without" in args.eval_arms or args.removal_eval_steps is not None
    if args.removal_eval_steps is not None and not in_evaluation:
        raise ValueError(
            f"`removal_eval_steps={args.removal_eval_steps}` has no effect, because no role can be left out "
            f"of the team {list(topology.role_names)}. Leave it out."
        )
    draws = args.advantage_estimator == "counterfactual" or (seen and in_evaluation)
    # CCPO with its bonus switched off is accepted, too, because with a bonus it would run such passes.
    if draws or any(isinstance(allocator, CounterfactualCredit) for allocator in allocators):
        return
    if any(allocator.evidence(topology, topology.role_names).removals for allocator in allocators):
        return
    idle = {
        "num_solos": args.num_solos is not None,
        "removal": args.removal != "prompt",
        "skip_uninformative_solos": args.skip_uninformative_solos,
    }
    if names := [name for name, is_set in idle.items() if is_set]:
        credits = ", ".join(allocator.__name__ for allocator in allocators)
        raise ValueError(
            f"`{names[0]}={getattr(args, names[0])!r}` has no effect: it is for answers of the team without a "
            f"role, and `{credits}` needs none. Leave it out, or use a credit that needs them (`credit: "
            "ccpo`)."
        )


def check_role_kwargs(args: MultiAgentGRPOConfig, topology: Topology) -> None:
    """
    Check the names in `role_kwargs`.

    Raises:
        `ValueError`: If a name is not a role or an agent, or if a role has a setting that belongs to its agent.
    """
    names = list(dict.fromkeys([*topology.role_names, *topology.agents]))
    given = args.role_kwargs or {}
    if unknown := sorted(set(given) - set(names), key=str):
        raise ValueError(f"`role_kwargs` names {unknown}, which are not in the topology. It has {names}.")
    for name, overrides in given.items():
        agents_own = [key for key in AGENT_KEYS if key in overrides]
        if agents_own and name not in topology.agents and len(topology.roles_of(topology.agent_of(name))) > 1:
            agent = topology.agent_of(name)
            raise ValueError(
                f"`role_kwargs[{name!r}]` has {agents_own}, which can be set only for a whole agent, but "
                f"{name!r} is one of the roles {list(topology.roles_of(agent))} of {agent!r}. Set them in "
                f"`role_kwargs[{agent!r}]`."
            )
    policies = {agent: topology.roles_of(agent) for agent in topology.agents}
    if args.policy_sharing != "separate":
        policies = {"all": topology.role_names}
    for roles in policies.values():
        heat = {role: args.for_role(role, "temperature", topology.agent_of(role)) for role in roles}
        if len(set(heat.values())) > 1:
            raise ValueError(
                "`temperature` must be the same for all roles of one model, because the log-probabilities "
                f"depend on it, got {heat} with `policy_sharing={args.policy_sharing!r}`. Set `temperature`, "
                "or the one of the agent."
            )
