"""What can be known to be wrong before any model loads: the trainer's arguments."""

import math
import os
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedTokenizerBase
from trl.data_utils import is_conversational
from trl.trainer.utils import get_config_model_id

from ..rewards import CreditAllocator
from ..team.topology import Topology
from .config import MultiAgentGRPOConfig
from .credit_checks import check_credit, check_role_kwargs
from .engine_checks import check_drawing, check_engines
from .engines import has_engine_per_agent
from .input_checks import check_datasets
from .model_checks import check_tokens, check_weights
from .models import AgentModels, frozen_by_role_kwargs
from .output_dir import check_output_dir
from .starts import Start, tokenizer_folder


def check_episode_arguments(given: dict[str, Any], topology: Topology) -> None:
    """Raise a `ValueError` for TRL's ways to make an episode of one role's turns, where there are several roles."""
    for name, value in given.items():
        if not topology.is_solo and value is not None:
            raise ValueError(
                f"`{name}` is not supported with several roles ({list(topology.role_names)}): a team's episode is one "
                f"pass through its topology, without tools or environments. Leave `{name}` out, or train one role, "
                "`topology=Solo()`."
            )


def check_arguments(
    models: dict[str, Any],
    allocators: list[CreditAllocator],
    args: MultiAgentGRPOConfig,
    train_dataset: Any,
    topology: Topology,
    peft_config: Any,
    eval_dataset: Any = None,
    given: AgentModels | None = None,
) -> None:
    """
    Raise a `ValueError` that names field, value and remedy for trainer arguments that cannot be right together.

    `given` is what [`read_models`] found; without it, before there are models, `role_kwargs` say who is frozen.
    """
    check_role_kwargs(args, topology)
    starts = {} if given is None else given.starts
    frozen = frozen_by_role_kwargs(args, topology) if given is None else given.frozen
    roles, agents, team = topology.role_names, topology.agents, not topology.is_solo
    names = list(dict.fromkeys([*roles, *agents]))
    if args.start_role is not None and args.start_role not in names:
        raise ValueError(
            f"`start_role={args.start_role!r}` is neither a role nor an agent of the topology. It has the roles "
            f"{list(roles)} and the agents {list(agents)}: name one of them, or leave `start_role` out."
        )
    if team:
        _check_agent_names(agents, args.policy_sharing)
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"`peft_config` must be a peft.PeftConfig such as LoraConfig(...), got {type(peft_config).__name__} "
            f"{peft_config!r}. Build one, e.g. peft.LoraConfig(**peft_config)."
        )
    if args.policy_sharing == "adapters" and team and peft_config is None:
        raise ValueError(
            "`policy_sharing='adapters'` needs `peft_config` (got None): pass peft.LoraConfig(...), start from saved "
            "adapters, or set `policy_sharing='separate'`."
        )
    if args.policy_sharing == "adapters" and team and peft_config.is_prompt_learning:
        raise ValueError(
            f"`policy_sharing='adapters'` needs adapters of which a model may have several, got one of the kind "
            f"{peft_config.peft_type.value}. Use e.g. peft.LoraConfig(...), or `policy_sharing='separate'`."
        )
    if args.merge_adapters and peft_config is None and not starts:
        raise ValueError("`merge_adapters=True` needs `peft_config` (got None): there is no adapter to merge.")
    for agent, model in models.items() if args.merge_adapters else ():
        if not isinstance(model, str) and not get_config_model_id(model.config):
            raise ValueError(
                f"`merge_adapters=True` loads the base from where it came from, but the model of {agent!r} came "
                "from nowhere. Save it with save_pretrained and pass the folder, or set `merge_adapters=False`."
            )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "`enable_jit_checkpoint=True` saves inside a step, which cannot be continued exactly. Set it to False: "
            "SIGTERM saves after the step without it."
        )
    evaluates = args.eval_strategy != "no" or eval_dataset is not None
    check_credit(allocators, topology, args, tuple(agent for agent in agents if agent not in frozen), evaluates)
    check_drawing(args, topology)
    _check_eval_arms(args, topology)
    if team:
        _check_several_roles(args)
    if train_dataset is None and team:
        raise ValueError("`train_dataset` is required, got None.")
    weights = args.reward_weights
    if weights is not None and not (
        isinstance(weights, list | tuple)
        and all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in weights)
    ):
        raise ValueError(f"`reward_weights` must be a list of finite numbers, got {weights!r}.")
    if args.reward_weights is not None and len(args.reward_weights) != len(allocators):
        raise ValueError(
            f"`reward_weights={args.reward_weights}` has {len(args.reward_weights)} weights for {len(allocators)} "
            "reward functions. Give one to each, in their order."
        )
    if team and args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(
            f"`num_train_epochs={args.num_train_epochs}` and `max_steps={args.max_steps}`: nothing would be trained. "
            "Set one of them to more than 0."
        )
    check_output_dir(args)
    if train_dataset is not None:
        check_datasets(train_dataset, eval_dataset, args, allocators, topology)
    for agent, model in models.items():
        _check_model(agent, model, args, starts.get(agent), agent in frozen)
    if team:
        check_weights(models, frozen, adapters_only=args.policy_sharing == "adapters")
    if args.use_vllm and team:
        check_engines(models, args, topology, allocators, peft_config)


def _check_agent_names(agents: tuple[str, ...], sharing: str) -> None:
    """Agents' weights stand under their names in a torch module, which has attributes of its own."""
    taken = [agent for agent in agents if any(hasattr(kind(), agent) for kind in (nn.ModuleDict, nn.ParameterDict))]
    if taken and sharing != "shared":
        raise ValueError(
            f"`agent` {taken[0]!r} is the name of an attribute of torch modules, in which the weights stand under "
            f"their agents' names. Rename it, or keep the role's name: Role({taken[0]!r}, agent='{taken[0]}er')."
        )


def _check_eval_arms(args: MultiAgentGRPOConfig, topology: Topology) -> None:
    if not {*args.eval_arms} - {"without"}:
        return
    if not any(role.reads for role in topology.roles):
        raise ValueError(
            f"`eval_arms={args.eval_arms}` is of roles that others read, and nobody reads another among "
            f"{list(topology.role_names)}. Set `eval_arms` to ['without'], or to []."
        )
    rows, group = args.per_device_eval_batch_size * args.world_size, args.num_generations_eval or args.num_generations
    if "swapped" in args.eval_arms and rows < 2 * group:
        raise ValueError(
            f"`eval_arms={args.eval_arms}` swaps the texts of two problems, and an evaluation's batch holds one: "
            f"`per_device_eval_batch_size={args.per_device_eval_batch_size}` x {args.world_size} processes is less "
            f"than twice the {group} rows of a problem. Raise it, or lower `num_generations_eval`."
        )


def _check_several_roles(args: MultiAgentGRPOConfig) -> None:
    if args.sync_ref_model and args.policy_sharing != "shared":
        raise ValueError(
            f"`sync_ref_model=True` needs `policy_sharing='shared'`, got {args.policy_sharing!r}: TRL's callback "
            "syncs one reference with one model. Set `sync_ref_model=False`."
        )
    if args.use_adaptive_entropy:
        raise ValueError(
            "`use_adaptive_entropy=True` is not supported with several roles: one controller cannot hold the entropy "
            "of several policies. Set `use_adaptive_entropy=False`."
        )
    _check_optimizer(args)
    _check_ddp(args)
    plugin = args.deepspeed_plugin  # of `args.deepspeed` or of `accelerate launch`
    if plugin is not None and plugin.deepspeed_config.get("optimizer") is not None:
        raise ValueError(
            "the deepspeed config must not define an optimizer with several roles: parameter groups per agent would "
            f"be lost. It has `optimizer={plugin.deepspeed_config['optimizer']!r}`. Remove the block; lr, betas and "
            "weight decay come from the arguments."
        )
    if plugin is not None and plugin.zero_stage == 3:
        name = "stage3_gather_16bit_weights_on_model_save"
        if plugin.deepspeed_config["zero_optimization"].get(name) is False:
            raise ValueError(
                f"the deepspeed config has `{name}=False`, with which the agents cannot be saved as models. Set it to "
                "true (`zero3_save_16bit_model: true` in an accelerate config)."
            )
    fsdp_version = None
    if args.fsdp:
        fsdp_version = args.fsdp_plugin_args["fsdp_version"]
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        fsdp_version = int(os.environ.get("FSDP_VERSION", "1"))
    if fsdp_version == 1:
        raise ValueError(
            "FSDP1 flattens the parameters of several agents into one. Use FSDP2: `fsdp_version: 2` in the accelerate "
            "config (`version: 2` in `fsdp_config`)."
        )
    _check_blocks(args)


def _check_optimizer(args: MultiAgentGRPOConfig) -> None:
    """An optimizer that leaves an agent out of turn alone, and whose parameter groups can be each agent's."""
    name = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in name or "lomo" in name:
        raise ValueError(
            f"`optim={name!r}` is not supported with several roles: it steps inside the backward pass, and a step has "
            "one for each role. Use e.g. 'adamw_torch'."
        )
    if "schedule_free" in name:
        check_modeless_optimizer(f"optim={name!r}", args)


def check_modeless_optimizer(given: str, args: MultiAgentGRPOConfig) -> None:
    """Refuse, where agents take turns, an optimizer that has a training and an evaluation mode."""
    if args.policy_sharing != "shared" and args.schedule == "alternate":
        raise ValueError(
            f"`{given}` does not go with `schedule='alternate'`: it rewrites the weights of every agent when it "
            "changes between training and evaluation, so that an agent out of turn would move. Use e.g. "
            "`optim='adamw_torch'`, or `schedule='joint'`."
        )


def _check_ddp(args: MultiAgentGRPOConfig) -> None:
    """What makes DDP fail where the agents take turns: the weights of the others get no gradient."""
    fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if args.world_size == 1 or args.policy_sharing == "shared" or args.deepspeed_plugin is not None or fsdp:
        return
    reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    for field, wrong, remedy in (
        ("ddp_find_unused_parameters=False", args.ddp_find_unused_parameters is False, "Leave it out"),
        ("ddp_static_graph=True", args.ddp_static_graph, "Leave it out"),
        ("gradient_checkpointing_kwargs={'use_reentrant': True}", reentrant, "Set 'use_reentrant' to False"),
    ):
        if wrong:
            raise ValueError(
                f"`{field}` does not go with DDP and `policy_sharing={args.policy_sharing!r}`: while one agent is "
                f"trained, the weights of the others are unused, and DDP must look for them. {remedy}, or use ZeRO or "
                "FSDP2."
            )


def _check_blocks(args: MultiAgentGRPOConfig) -> None:
    """A block of `schedule="alternate"` holds whole optimizer steps, so that none mixes two agents' turns."""
    batch = args.steps_per_generation * args.num_iterations  # micro-batches
    if args.schedule != "alternate" or args.alternate_period * batch % args.gradient_accumulation_steps == 0:
        return
    unit = args.gradient_accumulation_steps // math.gcd(args.gradient_accumulation_steps, batch)
    raise ValueError(
        f"`alternate_period={args.alternate_period}` x `steps_per_generation={args.steps_per_generation}` x "
        f"`num_iterations={args.num_iterations}` = {args.alternate_period * batch} micro-batches in a block, which is "
        f"not a multiple of `gradient_accumulation_steps={args.gradient_accumulation_steps}`: an agent's turn would "
        f"end inside an optimizer step. Make `alternate_period` a multiple of {unit}, e.g. "
        f"{math.ceil(args.alternate_period / unit) * unit}, or use `schedule='joint'`."
    )


def _check_model(agent: str, model: Any, args: MultiAgentGRPOConfig, start: Start | None, frozen: bool) -> None:
    if not isinstance(model, str) and not hasattr(model, "config"):
        raise ValueError(
            f"`model` of agent {agent!r} must be an id, a folder or a model, got {model!r:.80}. Give a text, or an "
            "object of from_pretrained."
        )
    if isinstance(model, str):
        revision = (args.model_init_kwargs or {}).get("revision")
        try:
            AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError) as error:
            if start is not None:
                raise ValueError(
                    f"`model` of agent {agent!r}: {start.source!r} is an adapter of {model!r}, which could not be "
                    "found or read. Write where its base is into `base_model_name_or_path` of its "
                    f"adapter_config.json, or give a PeftModel. ({error})"
                ) from error
            raise ValueError(
                f"`model` of agent {agent!r}: {model!r} could not be found or read. Give a folder written by "
                f"save_pretrained or a model id of the Hub. ({error})"
            ) from error
    elif frozen or start is not None:
        return  # no reference is loaded
    elif args.beta != 0 and not get_config_model_id(model.config) and args.policy_sharing != "adapters":
        raise ValueError(
            f"`beta={args.beta}` needs a reference, which is loaded from where the model came from, but the model of "
            f"agent {agent!r} came from nowhere. Save it with save_pretrained and pass the folder, or set `beta=0`."
        )


def load_tokenizers(
    source: AgentModels, processing_class: Any, datasets: dict[str, Any]
) -> dict[str, PreTrainedTokenizerBase]:
    """
    The tokenizer of each agent, as TRL loads it, or that of the saved adapter from which it starts; a pad token where
    there is none. `datasets` are by name.

    Raises:
        `ValueError`: conversational prompts and no chat template, a model that names no tokenizer, or a tokenizer of
            an agent that is not there.
    """
    models, args = source.models, source.args
    if isinstance(processing_class, dict) and (unknown := sorted(set(processing_class) - set(models), key=str)):
        raise ValueError(
            f"`processing_class` names {unknown}, which the topology does not have; its agents are {list(models)}. "
            "Rename or remove them; an agent without an entry gets its model's tokenizer."
        )
    tokenizers = {}
    for agent, model in models.items():
        given = processing_class.get(agent) if isinstance(processing_class, dict) else processing_class
        if given is None:
            model_id = model if isinstance(model, str) else get_config_model_id(model.config)
            model_id = source.tokenizers.get(agent) or tokenizer_folder(source.starts.get(agent)) or model_id
            if not model_id:
                raise ValueError(
                    f"`processing_class` of agent {agent!r} is None and its model came from no id or folder. Pass it."
                )
            given = AutoProcessor.from_pretrained(
                model_id,
                revision=(args.model_init_kwargs or {}).get("revision"),
                truncation_side="left",
                padding_side="left",
                trust_remote_code=args.trust_remote_code,
            )
        if not isinstance(given, PreTrainedTokenizerBase) and len(models) > 1:
            raise ValueError(
                f"`processing_class` of agent {agent!r} must be a tokenizer, got {type(given).__name__}: several "
                "roles exchange text only."
            )
        if isinstance(given, PreTrainedTokenizerBase) and given.pad_token is None:
            given.pad_token = given.eos_token
        chat = [name for name, dataset in datasets.items() if is_conversational(next(iter(dataset)))]
        if chat and getattr(given, "chat_template", None) is None:
            raise ValueError(
                f"`{chat[0]}` has conversational prompts, but the tokenizer of agent {agent!r} has no chat "
                "template. Set `tokenizer.chat_template`, use an instruct model, or give text prompts."
            )
        tokenizers[agent] = given
    if len(models) > 1:
        check_tokens(models, tokenizers, args)
    special = {
        agent: {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        for agent, tokenizer in tokenizers.items()
    }
    if args.policy_sharing != "separate" and len({str(ids) for ids in special.values()}) > 1:
        raise ValueError(
            f"`processing_class`: one model has one set of special tokens, but those of the agents differ: {special}. "
            "Use one tokenizer, or `policy_sharing='separate'`."
        )
    if args.use_vllm and len(models) > 1 and not has_engine_per_agent(args, tuple(models)):
        first, *others = (tokenizer.get_vocab() for tokenizer in tokenizers.values())
        if any(other != first for other in others):
            raise ValueError(
                "`processing_class`: one vLLM engine has one tokenizer, but those of the agents have other tokens. "
                "Use one tokenizer, or `policy_sharing='separate'` with `vllm_engine_per_role=True`."
            )
    return tokenizers
