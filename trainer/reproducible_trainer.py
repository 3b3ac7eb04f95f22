"""What all trainers of vistok have in common: exact resuming, and an end where the loss is no number."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging

from ..modeling.divided_weights import whole_state_dict
from ..modeling.lora_adapters import whole_copy
from .checkpoints import check_strategy, checkpoint_to_resume
from .endless_stream import EndlessStream, StreamCollator, has_exact_state
from .length_groups import LengthGroups
from .part_learning_rates import set_part_learning_rates
from .push_trained import check_hub_strategy, push_trained, push_while_training
from .quantized_training import beside_quantized_weights, check_whole
from .sharded_training import prepare_fsdp, uses_zero3, whole_models
from .stream_states import StreamStates
from .zero_checkpoints import parts_put_together, restore_rest

logger = logging.get_logger(__name__)


class DivergedError(ValueError):
    """The loss or the gradient is no finite number: going on would only spoil the weights."""


class ReproducibleTrainer(Trainer):
    """
    A `transformers.Trainer` that ends a run which was killed and resumed as it would have ended without that, that
    evaluates without touching the random numbers of training, and that stops where the loss is no finite number.
    Parts of the model learn at rates of their own, where `args` has `learning_rates`.

    Args:
        data_collator (`Callable`): for training. If it has a tensor `epoch`, it is told the current one.
        eval_collator (`Callable`, *optional*): for evaluation; by default the same.
        kwargs: as in `transformers.Trainer`.
    """

    # For each part of the model "frozen", "full" or "lora": subclasses that train parts set it.
    trainable: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *, args: TrainingArguments, data_collator: Any, eval_collator: Any = None, **kwargs):
        check_hub_strategy(args)
        if args.n_gpu > 1:
            # One process could only split a batch by rows, and images are no rows.
            logger.warning(f"Training on one of {args.n_gpu} GPUs: start with `accelerate launch` to use all of them.")
            args._n_gpu = 1
        # What a subclass adds up between two logs, by name: a run that resumes in between goes on with it.
        self._since_log: dict[str, torch.Tensor | float] = {}
        self._train_collator = data_collator
        self._eval_collator = data_collator if eval_collator is None else eval_collator
        self._streams = StreamStates(args)
        self._groups: LengthGroups | None = None
        self._was_evaluated_first = False
        self._has_part_learning_rates = False
        if isinstance(kwargs.get("train_dataset"), EndlessStream):
            kwargs["train_dataset"].tells_state = has_exact_state(kwargs["train_dataset"])
        if getattr(kwargs.get("model"), "is_quantized", False):
            check_whole(args)
        with beside_quantized_weights(kwargs.get("model")):
            super().__init__(args=args, data_collator=data_collator, **kwargs)
        if self.is_fsdp_enabled:
            prepare_fsdp(self.accelerator.state.fsdp_plugin, self.model)

    @property
    def weights_are_divided(self) -> bool:
        """Whether each process has a part of every weight: with FSDP, and DeepSpeed's ZeRO stage 3."""
        return self.is_fsdp_enabled or uses_zero3(self.args)

    @contextlib.contextmanager
    def model_to_save(self, model: PreTrainedModel) -> Iterator[PreTrainedModel | None]:
        """
        A model, or a part of it, with whole weights, in the process that saves. All processes have to enter.

        Args:
            model (`PreTrainedModel`): that is trained.

        Yields:
            `PreTrainedModel`: the model itself, or a copy on the CPU where its weights are divided among processes;
            `None` in the processes that save nothing.
        """
        saves = self.args.should_save
        if not self.weights_are_divided:
            yield model if saves else None
            return
        weights = whole_state_dict(model, keep=saves)
        with whole_models():
            yield whole_copy(model, weights) if saves else None

    card_kind: str | None = None
    """The kind of card of what is trained, where the type of the model does not say it."""

    run_record: Mapping[str, Any] = MappingProxyType({})
    """What a recipe knows of its run, for the cards of what is pushed on the way."""

    def push_to_hub(self, commit_message=None, blocking=True, token=None, revision=None, private=None, **options):
        """
        Publishes what was trained, as `save_final` saves it, with its card, in one commit: what `vistok push` does
        with the folder of a recipe.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): of the commit.
            blocking (`bool`, *optional*, defaults to `True`): there is no other way.
            token, revision, private: by default those of `args`, as is the repository, `args.hub_model_id`.
            options: `self_contained`, to publish the code too.

        Returns:
            [`Pushed`]; `None` in all but the first process.

        Raises:
            ValueError: if something is not fit to be published.
            PushError: if the Hub cannot be reached or refuses; nothing was committed.
        """
        return push_trained(self, commit_message, token, revision, private, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        push_while_training(self)

    def get_train_dataloader(self):
        if not getattr(self.train_dataset, "tells_state", False):
            return super().get_train_dataloader()
        return self._with_collator(StreamCollator(self._train_collator), super().get_train_dataloader)

    def _get_train_sampler(self, train_dataset=None):
        data = self.train_dataset if train_dataset is None else train_dataset
        name = self.args.length_column_name
        grouped = self.args.train_sampling_strategy == "group_by_length" and isinstance(data, Dataset)
        if not grouped or name not in data.column_names:
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._groups = LengthGroups(data[name], rows, seed)
        return self._groups

    def _get_eval_sampler(self, eval_dataset):
        strategy = self.args.train_sampling_strategy
        self.args.train_sampling_strategy = "random"  # which orders training alone
        try:
            return super()._get_eval_sampler(eval_dataset)
        finally:
            self.args.train_sampling_strategy = strategy

    def get_eval_dataloader(self, eval_dataset=None):
        return self._with_collator(self._eval_collator, super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset):
        return self._with_collator(self._eval_collator, super().get_test_dataloader, test_dataset)

    def _with_collator(self, collator, get_dataloader, *datasets):
        self.data_collator: Any = collator
        try:
            return get_dataloader(*datasets)
        finally:
            self.data_collator = self._train_collator

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        `Trainer.train`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                Folder of a checkpoint; `True` for the last complete one in the output folder, `"auto"` for the same if
                there is one. Training goes on exactly as if it had not been interrupted.
            args, kwargs: as in `transformers.Trainer`.

        Raises:
            CheckpointError: if the checkpoint is incomplete or truncated, or does not fit the model, or is one of FSDP
                or of DeepSpeed and this training uses another.
            DivergedError: if the loss or the gradient is no finite number.
            ValueError: if DeepSpeed's stage 3 has divided the model for an evaluation, without an optimizer.
        """
        if self._was_evaluated_first:
            raise ValueError(
                "evaluate() ran before train(), and ZeRO stage 3 has divided the model without an optimizer: set "
                "eval_on_start in place of it, or make a new trainer."
            )
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None:
            stage = self.args.deepspeed_plugin.zero_stage if self.is_deepspeed_enabled else 0
            check_strategy(checkpoint, self.is_fsdp_enabled, self.is_deepspeed_enabled, stage)
        return super().train(checkpoint, *args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        rates = getattr(self.args, "learning_rates", None)
        is_new = self.optimizer is None  # with DeepSpeed it is asked for twice
        if rates and not is_new and not self._has_part_learning_rates:
            raise ValueError(
                "learning_rates are those of parts in the trainer's own optimizer, and another one was given (in "
                "Python, or in the configuration of DeepSpeed): leave one of the two out."
            )
        optimizer = super().create_optimizer(*args, **kwargs)
        if rates and is_new:
            set_part_learning_rates(optimizer, self.model, rates, self.trainable)
            self._has_part_learning_rates = True
        return optimizer

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = (max_steps, train_dataloader, resume_from_checkpoint)
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(*prepared)
        with parts_put_together(self.accelerator, resume_from_checkpoint) as were_put_together:
            model, train_dataloader = super()._prepare_for_training(*prepared)
        if were_put_together:
            restore_rest(model, resume_from_checkpoint)
        return model, train_dataloader

    def _load_best_model(self):
        if not self.is_deepspeed_enabled:
            return super()._load_best_model()
        best = self.state.best_model_checkpoint
        with parts_put_together(self.accelerator, best) as were_put_together:
            self.model_wrapped._config.load_universal_checkpoint = were_put_together
            super()._load_best_model()
        if were_put_together:
            restore_rest(self.model_wrapped, best)

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # a run that was at its end takes no further step
            self.control.should_training_stop = True
            return
        epoch = getattr(self._train_collator, "epoch", None)
        if isinstance(epoch, torch.Tensor):  # shared with data loader workers
            epoch.fill_(kwargs["epoch"])
        if self._groups is not None:
            self._groups.set_epoch(kwargs["epoch"])  # before the loader that a run resumes with is made around it
        stream = getattr(kwargs["train_dataloader"], "dataset", None)
        if isinstance(stream, EndlessStream):
            stream.go_on_from({})
            if kwargs["steps_trained_in_current_epoch"]:
                self._streams.load(kwargs["resume_from_checkpoint"], stream)
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return super().get_batch_samples(map(self._streams.note, epoch_iterator), num_batches, device)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._stop_unless_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not self.args.fp16:  # the loss scaler of float16 skips such steps
            self._stop_unless_finite("gradient norm", norm)
        return norm

    def _stop_unless_finite(self, what: str, value) -> None:
        value = torch.as_tensor(value)
        if not torch.isfinite(value).all():
            raise DivergedError(
                f"The {what} is {value.float().mean().item()} in step {self.state.global_step + 1}. The weights have "
                f"not been updated with it. Lower learning_rate (now {self.args.learning_rate}), set max_grad_norm "
                f"(now {self.args.max_grad_norm}) or look at the data, and resume from the last checkpoint."
            )

    def evaluate(self, *args, **kwargs):
        """`Trainer.evaluate`, which leaves the random numbers of training alone."""
        self._was_evaluated_first |= uses_zero3(self.args) and self.model_wrapped is self.model
        state = torch.get_rng_state()
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            torch.set_rng_state(state)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        since_log = {"loss": self._tr_loss.item(), "last_logged_step": self._globalstep_last_logged}
        sums = {name: float(value) for name, value in self._since_log.items()}
        torch.save({**since_log, "sums": sums}, self._loss_file(output_dir))
        self._streams.save(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        files = sorted(Path(checkpoint).glob("loss_since_log_*.pt"))
        if not files:
            return
        # The first loss that is logged is the mean since the last one that was. With as many processes as before each
        # has its own share; otherwise all have the same.
        is_own, size = len(files) == self.args.world_size, self.args.world_size
        parts = [torch.load(file, weights_only=True) for file in ([self._loss_file(checkpoint)] if is_own else files)]
        before = sum(part["loss"] for part in parts) / len(parts)
        self._tr_loss += before
        self._total_loss_scalar -= before  # which is over the steps of this session
        self._globalstep_last_logged = parts[0]["last_logged_step"]
        for part in parts:
            for name, value in part.get("sums", {}).items():  # the next step may have begun to count
                share = value if is_own else value / size
                self._since_log[name] = self._since_log.get(name, 0.0) + share

    def _taken_together(self, sums: dict[str, Any]) -> dict[str, float]:
        """Empties sums by name, and returns those of all processes together; a name may be known to some alone."""
        own = [{name: float(value) for name, value in sums.items()}]
        sums.clear()
        total: dict[str, float] = {}
        for part in gather_object(own) if self.args.world_size > 1 else own:
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _loss_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"loss_since_log_{self.args.process_index}.pt")


def check_datasets(args: TrainingArguments, train_dataset: Any, eval_dataset: Any) -> None:
    """
    Checks what any trainer needs of its data.

    Args:
        args (`TrainingArguments`): of the training.
        train_dataset (`Dataset` or `IterableDataset`, *optional*): to train on.
        eval_dataset (the same, or a `dict` of them, *optional*): to evaluate on.

    Raises:
        ValueError: if one is empty, or several processes would have to share a stream to evaluate on.
    """
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError(f"{name} is empty: there is nothing to learn from or to measure on.")
        if isinstance(dataset, IterableDataset) and dataset is not train_dataset and args.world_size > 1:
            raise ValueError(f"Several processes share no stream to evaluate on: load {name} with streaming off.")


def named_datasets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """All data sets of a trainer by what errors call them."""
    by_name = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    return {"train_dataset": train_dataset, **by_name}


__all__ = ["DivergedError", "ReproducibleTrainer", "check_datasets", "named_datasets"]
