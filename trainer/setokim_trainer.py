"""Training of Setokim in its stages II and III (SeTok, Section 2.2), on transformers' Trainer."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from ..modeling.divided_weights import whole_root
from ..modeling.trainable_parts import part_prefixes
from ..processing.collator import IGNORED
from ..processing.feature_cache import FeatureCache
from .answer_accuracy import answer_numbers, right_answers, row_losses
from .bank_filling import fill_token_bank, has_empty_bank
from .blank_images import BlankImages
from .freezing import rest_frozen_parts
from .reproducible_trainer import named_datasets
from .setokim_batches import (
    WrittenMasks,
    are_written,
    count_items,
    image_reader,
    rows_of_images,
    take_masks,
    with_visual_tokens,
)
from .setokim_collator import SEGMENT, SetokimCollator, grid_size_of, shown_images
from .setokim_config import LORA, SetokimTrainingConfig
from .setokim_measures import OF_MASK_TERMS, TERMS, RowSums, SetokimMetrics, token_counts, token_statistics
from .setokim_pictures import write_samples
from .sharded_training import uses_zero3
from .token_clock import TokenClock
from .visual_language_trainer import VisualLanguageTrainer
from .visual_prediction import LastStates


class SetokimTrainer(VisualLanguageTrainer):
    """
    Trains a model that reads and writes visual tokens in one of its two stages. SeTok stays as it is.

    Args:
        model ([`SetokimForConditionalGeneration`]): frozen and opened as the stage says.
        args ([`SetokimTrainingConfig`]): `stage`, and what is otherwise than the paper has it.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*): training examples (see
            [`load_data_source`]), with `images` and `messages`; those whose answer is an image have a `task` (see
            `image_answers.py`), and their last image is what is to be written.
        processing_class ([`SetokimProcessor`]): saved beside the model.
        data_collator (`Callable`, *optional*): by default a [`SetokimCollator`].
        kwargs: passed to `transformers.Trainer`.

    Raises:
        ValueError: if the model is no Setokim, rows are to be shared where images are written, masks are to be learned
            from a decoder that nothing has trained; or as in [`VisualLanguageTrainer`].

    Losses are means over all labels of text, all visual tokens that are written, and all masks, of a step: of all its
    batches and processes. Beside `loss` (what is minimised) a training logs, as means over everything since the last
    log,

    - `loss_lm`: cross-entropy of text, `[Img]` and `[/Img]` among it, in nats per label;
    - `loss_visual`: mean squared error of visual tokens that are written, per channel;
    - `loss_length`: cross-entropy of "one more visual token", in nats per token that is written;
    - `loss_choice`, of a model with a [`TokenBank`]: cross-entropy of tokens that are written, in nats per token;
    - `loss_mask_bce` and `loss_mask_dice`: of the masks that the mask decoder makes of tokens written for expressions;
    - `tokens_mean`, `tokens_min` and `tokens_max`: visual tokens of an image, read or written;
    - `tokens_per_second`: of text and images, without padding, over all processes and the time of training steps.

    Evaluation reports the same but the last, `eval_loss` (as minimised); `eval_answer_accuracy` (see
    [`VisualLanguageTrainer`]) of answers that are text alone; and `eval_ciou` and `eval_giou` of masks, in pixels of
    their images, which are those of greedy generation, since nothing but the question precedes their token.
    """

    args: SetokimTrainingConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: SetokimTrainingConfig,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **kwargs,
    ):
        _check_model(model, args)
        _check_rows(args, train_dataset, eval_dataset)
        if args.trainable["llm"] == "full":
            model.merge_token_rows()
        elif args.trainable["token_rows"] == "full":
            model.add_token_rows()
        if args.trainable["llm"] == "lora" and args.lora is None and model.config.lora_config is None:
            args.lora = dict(LORA)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # all take part in every step, the mask decoder behind the forward
        self._fills_bank = has_empty_bank(model, args, train_dataset)
        self.weights = loss_weights(model, args)
        _check_mask_decoder(model, args, self.weights, train_dataset)
        kwargs.setdefault("compute_metrics", SetokimMetrics(self.weights))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        self._placeholders = (model.config.image_token_id, model.model.visual_tokenizer.max_num_tokens)
        self._totals = {"text": 1, "written": 1, "masks": 1}
        if self.is_fsdp_enabled:
            _keep_setok_whole(self.accelerator.state.fsdp_plugin, model, args)
        self._reader = image_reader(model.model) if uses_zero3(args) else None
        blank = torch.zeros(1, model.model.visual_tokenizer.output_size)
        self._blank_images = BlankImages(
            model, processing_class, divided=self.weights_are_divided, visual_tokens=blank
        )
        self._last_states = LastStates(model.model)
        self._clock = TokenClock()
        self.add_callback(_SampleCallback(self))

    def _set_start(self) -> None:
        super()._set_start()
        if self._fills_bank:
            self._place_model()
            with self.compute_loss_context_manager():
                fill_token_bank(
                    self.model,
                    self.train_dataset,
                    self._train_collator,
                    batch_size=self.args.per_device_eval_batch_size,
                    seed=self.args.seed,
                    progress_bar=not self.args.disable_tqdm and self.is_world_process_zero(),
                )

    @staticmethod
    def _make_collator(model, args, processing_class, features) -> SetokimCollator:
        return SetokimCollator(
            processing_class,
            features=features,
            max_length=args.max_length,
            grid_size=grid_size_of(model, processing_class),
            mask_scale=2**model.config.setok_config.mask_decoder_config.num_upsamplings,
        )

    @staticmethod
    def _cache_features(model, args, processing_class, train_dataset, eval_dataset) -> FeatureCache:
        named = named_datasets(train_dataset, eval_dataset)
        shown = {name: None if dataset is None else _Shown(dataset) for name, dataset in named.items()}
        return VisualLanguageTrainer._cache_features(model, args, processing_class, shown.pop("train_dataset"), shown)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """
        Turns the images of a step into visual tokens, and counts what its losses are means over, on all processes:
        labels of text, visual tokens that are written, and masks.
        """
        rest_frozen_parts(self.model, self.trainable)
        counts = torch.zeros(4, dtype=torch.long, device=device)
        for batch in batch_samples:
            tokenized = self._with_visual_tokens(batch)
            batch.clear()
            batch.update(tokenized)
            counts += torch.tensor(count_items(batch, *self._placeholders), device=device)
            for name in token_counts(batch):
                self._since_log[name] = self._since_log.get(name, 0.0) + 1
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0) // self.get_tp_size()
        text, written, masks, num_tokens = counts.tolist()
        self._totals = {"text": max(text, 1), "written": max(written, 1), "masks": max(masks, 1)}
        self._clock.add(float(num_tokens))
        return counts[0].clamp(min=1)

    def _with_visual_tokens(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        batch = self._prepare_inputs(dict(batch))
        with torch.no_grad(), self.compute_loss_context_manager(), whole_root(self.model):
            core = self.model.model if self._reader is None else self._reader.to(self.args.device, self.model.dtype)
            return with_visual_tokens(core, batch, self.args.segmentation_target)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted terms of the loss, with no matrix of logits; a part of their means over the whole step."""
        inputs = dict(inputs)
        masks = take_masks(inputs, *self._placeholders)
        parts = count_items(inputs, *self._placeholders)[:2] + [0 if masks is None else len(masks.rows)]
        inputs |= {
            "visual_loss_weight": self.weights["visual"],
            "length_loss_weight": self.weights["length"],
            "choice_loss_weight": self.weights.get("choice", 0.0),
            "num_visual_items": self._totals["written"],
        }
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        of_masks = self._mask_losses(outputs, masks)
        scale = self.accelerator.num_processes // self.get_tp_size()
        for name, part in of_masks.items():
            loss = loss + scale * self.weights[name] * part
        if model.training:
            of_model = {name: outputs[f"loss_{name}"] for name in self.weights if name not in OF_MASK_TERMS}
            self._note(of_model | of_masks, dict(zip(("text", "written", "masks"), parts)))
        return (loss, outputs) if return_outputs else loss

    def _mask_losses(self, outputs: Any, masks: WrittenMasks | None) -> dict[str, torch.Tensor]:
        """Parts of the means over all masks of a step; where there are none, still a part of the graph."""
        setok = self.model.model.setok
        if masks is not None:
            found = masks.losses(masks.logits(setok, outputs.visual_predictions))
            return {name: losses.sum() / self._totals["masks"] for name, losses in found.items()}
        if self.trainable["mask_decoder"] == "frozen" or not self.model.training:
            return {}
        # Several processes wait for one another's gradients of the mask decoder.
        return dict.fromkeys(OF_MASK_TERMS, 0.0 * self._decode_nothing(outputs.visual_predictions).sum())

    def _decode_nothing(self, like: torch.Tensor) -> torch.Tensor:
        config = self.model.config.setok_config.mask_decoder_config
        patches = like.new_zeros(1, 4, config.patch_hidden_size)
        tokens = like.new_zeros(1, 1, config.token_size) + 0.0 * like.sum()  # backward through all that others need
        return self.model.model.setok.decode_masks(tokens, None, patches, (2, 2))

    def _note(self, parts: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> None:
        """Adds up, of this process, the sums that the parts are made of."""
        for name, part in parts.items():
            total = self._totals[TERMS[name]]
            self._since_log[name] = self._since_log.get(name, 0.0) + part.detach().double() * total
        for name, count in counts.items():
            self._since_log[name] = self._since_log.get(name, 0.0) + count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            rate = self._clock.read()
            found = {"loss": logs["loss"], **self._means_since_log()}
            logs = {**found, **logs, **({} if rate is None else {"tokens_per_second": rate})}
        super().log(logs, start_time)

    def _means_since_log(self) -> dict[str, float]:
        sums = self._taken_together(self._since_log)
        means = SetokimMetrics(self.weights).losses({**dict.fromkeys(TERMS, 0.0), **sums})
        return {name: value for name, value in means.items() if name != "loss"} | token_statistics(sums)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss; of each row which answers are exactly right; and what [`SetokimMetrics`] makes means of."""
        batch = self._with_visual_tokens(inputs)
        masks = take_masks(batch, *self._placeholders)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs, right, sums = self._measure_text(model, batch)
            self._measure_images(batch, outputs, masks, sums)
        rows = sums.values
        metrics = SetokimMetrics(self.weights)(_Predicted(right.cpu(), rows.cpu()))
        loss = torch.tensor(metrics["loss"], device=self.args.device)
        return (loss, None, None) if prediction_loss_only else (loss, right, rows)

    def _measure_text(self, model, batch: dict[str, Any]) -> tuple[Any, torch.Tensor, RowSums]:
        labels = batch["labels"]
        shifted = labels.masked_fill(labels == self._placeholders[0], IGNORED)[:, 1:]
        positions = (shifted != IGNORED).any(0).nonzero().squeeze(-1)
        is_text = self._blank_images.are_needed_to_predict and "visual_tokens" not in batch
        outputs = model(**(self._blank_images.add_to(batch) if is_text else batch), logits_to_keep=positions)
        logits, targets = outputs.logits[: len(labels)], shifted[:, positions]  # without the row of a blank image
        sums = RowSums(len(labels), labels.device)
        rows = torch.arange(len(labels))
        losses = row_losses(logits, targets)
        sums.add("lm", rows, losses[:, 0])
        sums.add("text", rows, losses[:, 1])
        suppressed = getattr(getattr(self.model, "generation_config", None), "suppress_tokens", None)
        logits[..., list(suppressed or [])] = -torch.inf
        right = right_answers(logits.argmax(-1), targets, answer_numbers(shifted)[:, positions])
        if "visual_tokens" in batch:
            written = are_written(batch, *self._placeholders)
            right[rows_of_images(batch, *self._placeholders)[written]] = IGNORED
        return outputs, right, sums

    def _measure_images(self, batch: Mapping[str, Any], outputs, masks: WrittenMasks | None, sums: RowSums) -> None:
        states: Any = self._last_states.states
        if not len(outputs.visual_predictions):
            if self.weights_are_divided:  # other processes may need this one for their images
                self.model.compute_logits(states[:1, 0])
                self._decode_nothing(outputs.visual_predictions)
            return
        written = are_written(batch, *self._placeholders).tolist()
        targets = torch.cat([tokens for tokens, is_written in zip(batch["visual_tokens"], written) if is_written])
        errors = (outputs.visual_predictions.float() - targets.float()).square().mean(-1)
        before = states[:, :-1][outputs.visual_positions[:, 1:]]
        more = torch.full((len(before),), self._placeholders[0], device=before.device)
        lengths = nn.functional.cross_entropy(self.model.compute_logits(before).float(), more, reduction="none")
        sums.add_tokens(outputs.visual_positions.nonzero()[:, 0], errors, lengths, outputs.choice_losses)
        if masks is not None:
            rows = rows_of_images(batch, *self._placeholders)[masks.places.to(states.device)]
            sums.add_masks(rows, masks, masks.logits(self.model.model.setok, outputs.visual_predictions))
        elif self.weights_are_divided:
            self._decode_nothing(outputs.visual_predictions)

    def evaluate(self, *args, **kwargs):
        """`Trainer.evaluate`, which leaves the random numbers and the clock of training alone."""
        with self._clock.stopped():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self._clock.stopped():
            return super()._save_checkpoint(*args, **kwargs)

    def write_samples(self, path: str | os.PathLike) -> None:
        """
        Draws what the model writes now for some examples of the evaluation data, or else of the training data: images
        for captions and edits, masks for expressions. Data that ask for neither leave no picture. Where weights are
        divided among processes, all of them have to call it; one writes.

        Args:
            path (`str`): PNG file.
        """
        datasets = [part for part in named_datasets(None, self.eval_dataset).values() if part is not None]
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        file = Path(path) if self.is_world_process_zero() else None
        with self._clock.stopped(), self.compute_loss_context_manager(), whole_root(model):
            write_samples(model, self.processing_class, datasets or [self.train_dataset], self.args, file)
        model.train(training)


class _Predicted:
    """What a batch predicts, as [`SetokimMetrics`] reads the predictions of an evaluation."""

    def __init__(self, predictions: torch.Tensor, label_ids: torch.Tensor):
        self.predictions, self.label_ids = predictions, label_ids


class _Shown:
    """Examples without masks, which no tower sees."""

    def __init__(self, dataset: Iterable[Mapping[str, Any]]):
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(shown_images, self.dataset)


class _SampleCallback(TrainerCallback):
    def __init__(self, trainer: SetokimTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        draws = state.is_world_process_zero or self.trainer.weights_are_divided
        if args.sample_steps and state.global_step % args.sample_steps == 0 and draws:
            random_state = torch.get_rng_state()
            self.trainer.write_samples(Path(str(args.output_dir), "samples", f"step-{state.global_step:06d}.png"))
            torch.set_rng_state(random_state)


def loss_weights(model: Any, args: SetokimTrainingConfig) -> dict[str, float]:
    """
    The weights of the terms of the loss, by name.

    Args:
        model ([`SetokimForConditionalGeneration`]): whose config has those that are not given.
        args ([`SetokimTrainingConfig`]): the others.
    """
    of_model = {
        name: getattr(model.config if getattr(args, field) is None else args, field)
        for name, field in (
            ("visual", "visual_loss_weight"),
            ("length", "length_loss_weight"),
            *([] if model.token_bank is None else [("choice", "choice_loss_weight")]),
        )
    }
    return {"lm": 1.0, **of_model, "mask_bce": args.mask_bce_weight, "mask_dice": args.mask_dice_weight}


def _check_model(model: PreTrainedModel, args: SetokimTrainingConfig) -> None:
    if "token_rows" not in getattr(type(model), "trainable_parts", {}):
        raise ValueError(
            f"{type(model).__name__} writes no images, and is trained with VisualLanguageTrainer: give a "
            "SetokimForConditionalGeneration."
        )


def _keep_setok_whole(plugin: Any, model: Any, args: SetokimTrainingConfig) -> None:
    """SeTok runs before a step, on the images that each process has: FSDP divides none of it but what is trained."""
    setok = model.model.setok.to(args.device)
    trained = [] if args.trainable["mask_decoder"] == "frozen" else [setok.mask_decoder]
    plugin.ignored_modules = [part for part in setok.children() if part not in trained]
    in_setok = {type(part).__name__ for part in setok.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(set(plugin.transformer_cls_names_to_wrap) - in_setok)


def _tasks(dataset: Any) -> set[str]:
    """The tasks of a data set; of a stream they are not known beforehand."""
    if not isinstance(dataset, Dataset) or "task" not in dataset.column_names:
        return set()
    return {task for task in dataset.unique("task") if task is not None}


def _check_rows(args: SetokimTrainingConfig, train_dataset, eval_dataset) -> None:
    if args.conversations_per_row == 1:
        return
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        if tasks := sorted(_tasks(dataset)):
            raise ValueError(
                f"conversations_per_row is {args.conversations_per_row}, but {name} has images that are to be written "
                f"({', '.join(tasks)}), which share no rows: set it to 1, or train on conversations alone."
            )


def _check_mask_decoder(model: Any, args: SetokimTrainingConfig, weights, train_dataset) -> None:
    learns = weights["mask_bce"] or weights["mask_dice"]
    if not learns or SEGMENT not in _tasks(train_dataset) or args.trainable["mask_decoder"] != "frozen":
        return
    prefixes = part_prefixes(model, "mask_decoder")
    new: set[str] = getattr(model, "added_weights", set())
    is_composed = not os.path.isdir(str(getattr(model, "name_or_path", "") or ""))
    if is_composed and any(name.startswith(prefixes) for name in new):
        raise ValueError(
            "There are expressions to segment, but the mask decoder is new and would stay as it is: compose the model "
            "of a SeTok that was trained with masks (phase boundaries of SeTokTrainer), train it here (trainable: "
            "{mask_decoder: full}), or set mask_bce_weight and mask_dice_weight to 0."
        )


__all__ = ["SetokimTrainer", "loss_weights"]
