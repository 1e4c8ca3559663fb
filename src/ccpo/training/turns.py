"""[`TurnsMixin`] decides whose turn it is, and keeps the weights of all other agents exactly as they are."""

import copy

import torch
from accelerate.utils import DistributedType

from .policies import split_param_groups


class TurnsMixin:
    """
    Part of the trainer: the schedule, and an optimizer step that changes only the agents whose turn it is.

    It overrides these methods, each of which calls `super()`:

    - `create_optimizer`: gives each agent its own parameter groups.
    - `create_scheduler`: adds the hooks that protect the other agents. It is called after the optimizer has got its
      final form.
    """

    def _init_turns(self) -> None:
        """Set up the attributes. The trainer calls this in `__init__`."""
        self._moved_agents: set[str] = set()  # agents with a loss in the current optimizer step
        self._held_optimizer = None  # the optimizer that has the hooks
        self._held_gradients: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._held_settings: list[tuple[dict, dict]] = []
        self._step_ends = False  # whether the last loss completed an optimizer step's gradient

    def agents_in_turn(self) -> tuple[str, ...]:
        """The agents that are trained from the current generation batch. In evaluation, all trained agents."""
        trained = self.trained_agents
        if not self.model.training or self.args.schedule == "joint":
            return trained
        start = self.args.start_role
        if start is not None and start not in trained:  # it is the name of a role
            start = self.topology.agent_of(start)
        first = trained.index(start) if start else 0
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)
        return (trained[(first + batch // self.args.alternate_period) % len(trained)],)

    def roles_in_turn(self) -> tuple[str, ...]:
        """The roles of the agents whose turn it is."""
        agents = self.agents_in_turn()
        return tuple(role for role in self.roles if self.topology.agent_of(role) in agents)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if not self.topology.is_solo and not any("agent" in group for group in optimizer.param_groups):
            rates = {
                agent: self.args.for_agent(agent, self.topology.roles_of(agent), "learning_rate")
                for agent in self.trained_agents
            }
            rates = {agent: rate for agent, rate in rates.items() if rate is not None}
            split_param_groups(optimizer, self.model, self.agents, rates)
        return optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        inner = self.optimizer
        while hasattr(inner, "optimizer"):  # accelerate's wrapper, ZeRO's, then the one that steps
            inner = inner.optimizer
        if not self.topology.is_solo and inner is not self._held_optimizer:
            inner.register_step_pre_hook(self._hold_agents_out_of_turn)
            inner.register_step_post_hook(self._release_agents)
            self._held_optimizer = inner
        return scheduler

    def _hold_agents_out_of_turn(self, optimizer, args, kwargs) -> None:
        """
        Remove the gradients of each agent that had no loss in this optimizer step.

        With ZeRO these gradients are zeros, not None, and AdamW would decay weights and moments by them. A parameter
        without a gradient is skipped by the optimizer on every backend. Counters in parameter groups are restored.
        """
        if not self._moved_agents:
            return  # not a training step: `torch.distributed.checkpoint` makes one to create the moments
        for group in optimizer.param_groups:
            if group.get("agent") is not None and group["agent"] not in self._moved_agents:
                self._held_settings.append((group, {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}))
                for parameter in group["params"]:
                    self._held_gradients.append((parameter, parameter.grad))
                    parameter.grad = None

    def _release_agents(self, optimizer, args, kwargs) -> None:
        """Restore the gradients. If the optimizer is on the CPU, ZeRO writes into the same tensors in every step."""
        for parameter, gradient in self._held_gradients:
            parameter.grad = gradient
        for group, settings in self._held_settings:
            for name in group.keys() - settings.keys() - {"params"}:  # counters that the step has added
                del group[name]
            group.update(settings)
        self._held_gradients.clear()
        self._held_settings.clear()
        if self.use_vllm:
            self.engines.mark_changed(self._moved_agents)

    def _begin_loss(self, roles: set[str]) -> None:
        """Note whose gradients the next loss contributes to."""
        if self._step_ends:  # the last loss completed the gradients of an optimizer step
            self._moved_agents.clear()
            self._drop_last_gradients()
        self._moved_agents |= {self.topology.agent_of(role) for role in roles}
        self._step_ends = self.accelerator.sync_gradients

    def _drop_last_gradients(self) -> None:
        """
        Set the gradients that ZeRO-3 keeps from the last step to zero.

        ZeRO-3 overwrites them in the first backward pass of a step and adds to them in later ones. But the first
        backward pass of a role may be a later one of the step.
        """
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        buffer = getattr(getattr(engine, "optimizer", None), "grad_partitions_flat_buffer", None)
        if buffer is not None:
            buffer.zero_()

    def _forget_order_of_modules(self) -> None:
        """
        Let ZeRO-3 learn again in which order the modules use their weights.

        It prefetches weights in the order of the last pass. When a policy generated or rated, that pass ended in the
        LM head. TRL's losses use the weights of the head without its module, and the backward pass would miss them.
        """
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        offload = getattr(getattr(engine, "optimizer", None), "parameter_offload", None)
        coordinator = getattr(offload, "param_coordinator", None)
        if coordinator is not None and not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def _backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass of a role that is not the last of its batch. DeepSpeed steps only after the last."""
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        state, sync = self.accelerator.gradient_state, self.accelerator.sync_gradients
        if deepspeed:
            state._set_sync_gradients(False)
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
        if deepspeed:
            state._set_sync_gradients(sync)
