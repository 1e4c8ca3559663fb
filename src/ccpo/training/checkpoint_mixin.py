"""[`CheckpointMixin`]: what a trainer of several roles saves and when, and how it goes on from there."""

from __future__ import annotations

import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.data_utils import is_conversational

from ..quiet import patient_bars
from .adapters import load_sharded_adapters, merge_adapters
from .checkpoints import (
    RUN_STATE,
    check_checkpoint,
    find_last_checkpoint,
    put_aside,
    rotate_complete_checkpoints,
    write_manifest,
)
from .model_card import TeamCard, write_model_cards
from .output_dir import writing
from .policies import adapters_of, all_trainable
from .run_state import load_run_state, run_settings, run_state
from .saving import load_policies, save_policies, unlink_shared
from .stopping import IgnoreSignals, SaveCallback
from .team_file import write_team

logger = logging.getLogger(__name__)


class CheckpointMixin:
    """
    Over a [`~transformers.Trainer`] of several policies: checkpoints that are complete or known not to be, and from
    which a run goes on as if it had never stopped; SIGTERM and Ctrl-C save one and stop.

    Overrides, which call `super()` but where it knows one model only:

    - `save_model`, `_save`, `_push_from_checkpoint`: a folder per agent, gathered from every backend;
    - `_save_checkpoint`, `_save_rng_state`, `_finalize_training`: our state beside the `Trainer`'s, a manifest written
      last, and older checkpoints deleted only after it;
    - `train`, `_run_epoch`, `_get_train_sampler`, `_load_*`: the counterparts;
    - `get_train_dataloader`, `_determine_best_metric`: the signals do not reach the data workers, and a save at the
      end of an epoch waits for what the `Trainer` does there.
    """

    told: dict[str, Any] = {}  # of the command that has built the trainer, fields that it does not see

    def _init_checkpoints(self) -> None:
        """To be called when the trainer is built."""
        self._is_chat = self.train_dataset is not None and is_conversational(next(iter(self.train_dataset)))
        self._finished_epochs = 0  # of the run that this one continues
        self._saved_step = None  # global step of the last checkpoint
        self._saves_checkpoint = False  # whether what is being saved is one
        self._saver = SaveCallback(self.accelerator)
        self.add_callback(self._saver)

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """
        As in TRL. A resumed run goes on as if it had never stopped.

        Ctrl-C (SIGINT) and SIGTERM stop a run: it finishes the optimizer step, saves a checkpoint, whatever
        `save_strategy` says, and `train` returns as if the run were over. A script that goes on after `train` looks at
        `trainer.was_stopped`:

        ```python
        trainer.train()
        if trainer.was_stopped:  # by Ctrl-C or SIGTERM; the checkpoint is saved
            raise SystemExit
        trainer.save_model()
        ```

        A second Ctrl-C, a second or more after the first, ends at once: `train` raises `KeyboardInterrupt`, and the
        last checkpoint is the one from before. In a thread that is not the main one, signals keep their meaning.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint, or `True` for the last complete one in `output_dir`.

        Raises:
            `ValueError`: an incomplete checkpoint, or one of another set-up.
        """
        self._finished_epochs, self._saved_step = 0, None
        if self.use_vllm and not self.topology.is_solo:
            self.engines.mark_changed()
        if resume_from_checkpoint:
            folder = self._find_checkpoint(resume_from_checkpoint)
            self._finished_epochs = int(TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).epoch)
            resume_from_checkpoint = str(folder)
            if self.args.ignore_data_skip:
                logger.warning("`ignore_data_skip=True`: the resumed run sees other rows than the first would have.")
        with self._saver.listening():
            result = super().train(resume_from_checkpoint, *args, **kwargs)
            self._saver.stopped |= self._saver.agreed() and self._saved_step == self.state.global_step
        return result

    def _find_checkpoint(self, resume_from_checkpoint: str | bool) -> Path:
        """The checkpoint, checked by every process; what one finds wrong, all raise, lest the others wait."""
        folder, error = None, None
        try:
            last = resume_from_checkpoint is True
            folder = find_last_checkpoint(self.args.output_dir) if last else Path(resume_from_checkpoint)
            check_checkpoint(folder, run_settings(self), self.args.process_index)
        except ValueError as found:
            error = str(found)
        folders, errors = zip(*gather_object([(folder and folder.name, error)]), strict=True)
        if any(errors):
            raise ValueError(next(filter(None, errors)))
        if len(set(folders)) > 1:
            raise ValueError(
                f"`resume_from_checkpoint=True`: the processes find different ones: {sorted(set(folders))}."
            )
        return folder

    @property
    def was_stopped(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the last `train()`, after a checkpoint."""
        return self._saver.stopped

    def get_train_dataloader(self):
        return self._shielded(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset=None):
        return self._shielded(super().get_eval_dataloader(eval_dataset))

    def _shielded(self, loader):
        """The loader, whose workers do not hear the signals."""
        started = getattr(loader, "base_dataloader", loader)  # within accelerate's, which starts no workers itself
        if self.args.dataloader_num_workers and not isinstance(started.worker_init_fn, IgnoreSignals):
            started.worker_init_fn = IgnoreSignals(started.worker_init_fn)
        return loader

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed at the end: `Trainer` would take one more step
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)
        is_over = self.state.global_step >= self.state.max_steps
        if is_over and self._saver.agreed() and self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, None)  # the signal came after the last step, in an evaluation, say

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self._finished_epochs):
            next(iter(sampler), None)  # each epoch draws its order from where the last one left the generator
        return sampler

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._saved_step == self.state.global_step:
            return  # nothing has changed, and saving over it would leave a moment without it
        if self.args.should_save and folder.is_dir():
            put_aside(folder)
        self.accelerator.wait_for_everyone()
        limit, self._saves_checkpoint = self.args.save_total_limit, True
        try:
            with writing(self.args, folder.name), patient_bars():
                super()._save_checkpoint(model, trial)
                self._complete_checkpoint(folder)
        finally:
            self.args.save_total_limit, self._saves_checkpoint = limit, False
        best = self.state.best_model_checkpoint
        if self.args.should_save:
            rotate_complete_checkpoints(folder.parent, limit, {folder} | ({Path(best)} if best else set()))
        self._saved_step = self.state.global_step

    def _finalize_training(self, *args, **kwargs):
        # With a limit of 1, `Trainer` would delete all but the best: also the one that the run goes on from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _determine_best_metric(self, metrics, trial) -> bool:
        # `save_strategy="best"` saves by this alone.
        is_new_best = super()._determine_best_metric(metrics, trial)
        if self._saver.is_last_of_epoch(self.state):
            self._saver.deferred |= is_new_best
            return False
        return is_new_best or self._saver.stopped or self._saver.deferred

    def _complete_checkpoint(self, folder: Path) -> None:
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.args.should_save:
            everywhere = range(self.args.world_size)
            local = [self.args.process_index] if self.args.save_on_each_node else everywhere
            ranks = () if self.args.save_only_model else local
            write_manifest(folder, run_settings(self), ranks=ranks, passes=self._saver.passes)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(run_state(self), Path(output_dir) / RUN_STATE.format(rank=self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            file = Path(checkpoint) / RUN_STATE.format(rank=self.args.process_index)
            load_run_state(self, torch.load(file, map_location="cpu", weights_only=True))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        untouched = []
        if checkpoint is not None and self.is_fsdp_enabled and not self.topology.is_solo:
            # FSDP2 wants moments for whatever is trainable, and an agent whose turn has not come has none yet.
            file = Path(checkpoint) / RUN_STATE.format(rank=self.args.process_index)
            trained = torch.load(file, map_location="cpu", weights_only=True)["agents_with_moments"]
            untouched = [
                p
                for group in self.optimizer.param_groups
                if (group["agent"] or "") not in trained
                for p in group["params"]
            ]
        for parameter in untouched:
            parameter.requires_grad_(False)
        super()._load_optimizer_and_scheduler(checkpoint)
        for parameter in untouched:
            parameter.requires_grad_(True)

    @patient_bars()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if self.is_fsdp_enabled and adapters_of(self.model, self.agents):
            load_sharded_adapters(self.model, Path(resume_from_checkpoint), self.agents)
        elif self.topology.is_solo or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_policies(self.model, Path(resume_from_checkpoint), self.agents)

    def _load_best_model(self) -> None:
        if self.topology.is_solo or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        if self.use_vllm and not self.topology.is_solo:
            self.engines.mark_changed()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        sharded = self.is_fsdp_enabled and "FULL_STATE_DICT" not in str(
            self.accelerator.state.fsdp_plugin.state_dict_type
        )
        what = nullcontext() if self._saves_checkpoint else writing(self.args, "the models", output_dir)
        with all_trainable(self.model, self.agents), patient_bars(), what:
            if sharded:  # `Trainer` writes no models then
                self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.topology.is_solo:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_policies(self.model, folder, self.tokenizers, state_dict)
            if self.args.merge_adapters and not self._saves_checkpoint:
                merge_adapters(self.model, folder, self.agents, self.args)
            card = TeamCard(
                topology=self.topology,
                allocators=self.allocators,
                names=self._credit,
                args=self.args,
                told=self.told,
                dataset=self.train_dataset,
                is_chat=self._is_chat,
                step=self.state.global_step,
                tags=self._tag_names,
                origins=self._origins,
                trained=self.trained_agents,
                hub_id=self.hub_model_id,
            )
            write_model_cards(folder, card, self.model)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)
        if self.args.should_save:
            write_team(folder, self.topology, self.args, self.allocators[self._judge()].outcome)
        if self._saves_checkpoint:
            # `Trainer` would delete old ones before this one is known to be complete: `_save_checkpoint` does it.
            self.args.save_total_limit = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._complete_checkpoint(Path(checkpoint_folder))  # what is pushed can be resumed from
        if not self.topology.is_solo and self.is_world_process_zero() and self.args.hub_strategy != "end":
            for agent in self.agents:
                saved, out = Path(checkpoint_folder) / agent, Path(self.args.output_dir) / agent
                unlink_shared(out)
                shutil.copytree(saved, out, dirs_exist_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)
