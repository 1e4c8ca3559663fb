"""[`TurnsMixin`]: whose turn it is, and that an agent out of turn does not move by a bit."""

import copy

import torch
from accelerate.utils import DistributedType

from .policies import split_param_groups


class TurnsMixin:
    """
    Over a trainer of several agents: the schedule, and an optimizer step that leaves agents out of turn alone.

    Overrides, each of which calls `super()`:

    - `create_optimizer`: parameter groups per agent;
    - `create_scheduler`, which follows once the optimizer is the one that steps: the hook that keeps an agent out of
      turn from moving.
    """

    def _init_turns(self) -> None:
        """To be called when the trainer is built."""
        self._moved_agents: set[str] = set()  # that a loss of the current optimizer step touched
        self._held_optimizer = None  # the one with the hooks that hold agents out of turn
        self._held_gradients: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._held_settings: list[tuple[dict, dict]] = []
        self._step_ends = False  # whether the last loss completed an optimizer step's gradient

    def agents_in_turn(self) -> tuple[str, ...]:
        """The agents trained from the current generation batch; all that are trained in evaluation."""
        trained = self.trained_agents
        if not self.model.training or self.args.schedule == "joint":
            return trained
        start = self.args.start_role
        if start is not None and start not in trained:  # a role
            start = self.topology.agent_of(start)
        first = trained.index(start) if start else 0
        batch = self._step // (self.args.steps_per_generation * self.num_iterations)
        return (trained[(first + batch // self.args.alternate_period) % len(trained)],)

    def roles_in_turn(self) -> tuple[str, ...]:
        """The roles of the agents in turn."""
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
        Take the gradient away from every agent that no loss of this optimizer step touched.

        Under ZeRO such a gradient is zeros, not None, and AdamW would decay weights and moments with it. An optimizer
        passes a parameter without a gradient over, on every backend. What it counts in the group is put back.
        """
        if not self._moved_agents:
            return  # no training step: `torch.distributed.checkpoint` takes one to set the moments up
        for group in optimizer.param_groups:
            if group.get("agent") is not None and group["agent"] not in self._moved_agents:
                self._held_settings.append((group, {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}))
                for parameter in group["params"]:
                    self._held_gradients.append((parameter, parameter.grad))
                    parameter.grad = None

    def _release_agents(self, optimizer, args, kwargs) -> None:
        """Give the gradients back: with its optimizer on the CPU, ZeRO writes into the same ones in every step."""
        for parameter, gradient in self._held_gradients:
            parameter.grad = gradient
        for group, settings in self._held_settings:
            for name in group.keys() - settings.keys() - {"params"}:  # what the step has begun to count
                del group[name]
            group.update(settings)
        self._held_gradients.clear()
        self._held_settings.clear()
        if self.use_vllm:
            self.engines.mark_changed(self._moved_agents)

    def _begin_loss(self, roles: set[str]) -> None:
        """Note whose gradient the loss that comes is part of."""
        if self._step_ends:  # the last call completed an optimizer step's gradient
            self._moved_agents.clear()
            self._drop_last_gradients()
        self._moved_agents |= {self.topology.agent_of(role) for role in roles}
        self._step_ends = self.accelerator.sync_gradients

    def _drop_last_gradients(self) -> None:
        """
        Zero what ZeRO-3 keeps of the last step's gradients.

        It overwrites them in a step's first backward pass and adds to them in the others, and a role's first backward
        pass need not be the step's.
        """
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        buffer = getattr(getattr(engine, "optimizer", None), "grad_partitions_flat_buffer", None)
        if buffer is not None:
            buffer.zero_()

    def _forget_order_of_modules(self) -> None:
        """
        Make ZeRO-3 learn anew in which order the modules read their weights.

        It fetches ahead in the order of the last pass, which ended in the LM head when a policy generated or rated.
        TRL's losses use the head's weights without the module: the backward pass would find them gone.
        """
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        offload = getattr(getattr(engine, "optimizer", None), "parameter_offload", None)
        coordinator = getattr(offload, "param_coordinator", None)
        if coordinator is not None and not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def _backward(self, loss: torch.Tensor) -> None:
        """Backward pass of a role that is not the last of its batch; DeepSpeed steps after the last."""
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        state, sync = self.accelerator.gradient_state, self.accelerator.sync_gradients
        if deepspeed:
            state._set_sync_gradients(False)
        with torch.autocast(self.accelerator.device.type, enabled=False):
            self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
        if deepspeed:
            state._set_sync_gradients(sync)
