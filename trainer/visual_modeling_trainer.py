"""Training of visual modelling in its four stages (VT-LMM, Section 3.1), on transformers' Trainer."""

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from ..modeling.divided_weights import whole_root
from ..modeling.visual_positions import predicted_image_positions, used_placeholders
from ..processing.collator import IGNORED, VisualLanguageCollator
from ..processing.image_collator import ImageCollator
from .distinct_images import distinct_images
from .freezing import rest_frozen_parts
from .reproducible_trainer import named_datasets
from .token_clock import TokenClock
from .visual_language_trainer import VisualLanguageTrainer
from .visual_modeling_config import VISUAL_LOSSES, VisualModelingConfig
from .visual_prediction import (
    LastStates,
    PredictedPositions,
    PredictionStatistics,
    VisualModelingMetrics,
    statistics_of,
)

SUMS = ("loss_lm", "loss_vm")


class VisualModelingTrainer(VisualLanguageTrainer):
    """
    Trains a model in one of the four stages of visual modelling.

    Args:
        model ([`VTLMMForCausalLM`]): frozen and opened as the stage says.
        args ([`VisualModelingConfig`]): `stage`, and what is otherwise than the paper has it.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*): training examples (see
            [`load_data_source`]), with `images` and `messages`. In the stage `visual_tokens` each distinct image of
            them is shown once, without text; of a stream, the first image of each example.
        processing_class ([`VTLMMProcessor`]): saved beside the model.
        data_collator (`Callable`, *optional*): by default a [`VisualLanguageCollator`], or an [`ImageCollator`] in the
            stage `visual_tokens`.
        kwargs: passed to `transformers.Trainer`.

    Raises:
        ValueError: if a data set is empty or has no images where these are all that is shown, the model has no VM
            head, or puts pseudo image features (Eq. 8) in place of visual tokens in a stage that is trained without;
            or as in [`VisualLanguageTrainer`].

    Losses are means over all labels, and over all predicted image positions, of a step: of all its batches and
    processes. Where the number of visual tokens follows the image, tower and adapter run once more before a step in
    which Loss_VM is trained, to count them. Beside `loss` (what is minimised) a training logs

    - `loss_lm` and `loss_vm`: means over steps of Loss_LM, and of Loss_VM (Eq. 6) or Loss'_VM (Eq. 9), in nats;
    - `visual_perplexity`: exp(mean over image positions of −Σ_i P'(i) log Q(i)), the perplexity of the visual tokens
      P' under the predictions Q; it is exp(Loss_VM + mean entropy of P'), whose least value is exp(entropy);
    - `visual_entropy`: mean over image positions of −Σ_i P'(i) log P'(i), in nats;
    - `punctuation_share`: share of image positions whose most probable word (argmax of P') is a punctuation mark;
    - `tokens_per_second`: of text and images, without padding, over all processes and the time of training steps.

    The three in the middle are of the last batch with images before the log, by the heads as its step left them.

    Evaluation reports `eval_loss` (as minimised, with the weight of Loss_VM), and, where the stage has them,
    `eval_loss_lm`, `eval_answer_accuracy` (see [`VisualLanguageTrainer`]), `eval_loss_vm` (also where its weight is 0)
    and the three above of all image positions.
    """

    args: VisualModelingConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: VisualModelingConfig,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **kwargs,
    ):
        _check_model(model, args)
        if args.stage == "visual_tokens":
            named = named_datasets(train_dataset, eval_dataset)
            images = {name: part if part is None else distinct_images(part) for name, part in named.items()}
            train_dataset = images.pop("train_dataset")
            eval_dataset = images if isinstance(eval_dataset, dict) else images["eval_dataset"]
        kwargs.setdefault("compute_metrics", VisualModelingMetrics(args.stage, args.visual_loss_weight))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        self.statistics = PredictionStatistics(model, getattr(processing_class, "tokenizer", None))
        self._num_visual_items = torch.tensor(1)
        self._last_states = LastStates(model.model)
        self._last_predicted: PredictedPositions | None = None
        self._clock = TokenClock()

    @staticmethod
    def _make_collator(model, args, processing_class, features) -> VisualLanguageCollator:
        if args.stage == "visual_tokens":
            return ImageCollator(processing_class, features=features)
        return VisualLanguageTrainer._make_collator(model, args, processing_class, features)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Counts what the losses of a step are means over, on all processes: labels and predicted image positions."""
        counts = torch.zeros(3, dtype=torch.long, device=device)
        for batch in batch_samples:
            found = count_items(batch, self.model.config.image_token_id, self._token_mask(batch))
            counts += torch.tensor(found, device=device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0) // self.get_tp_size()
        num_labels, num_visual, num_tokens = counts
        self._num_visual_items = num_visual.clamp(min=1)
        self._since_log["steps"] = self._since_log.get("steps", 0.0) + 1 / self.args.world_size
        self._clock.add(float(num_tokens))
        return num_labels.clamp(min=1)

    @torch.no_grad()
    def _token_mask(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """
        Which placeholders of a batch become visual tokens that the loss is about, where their number follows the image
        and only the adapter knows; `None` of all.
        """
        core = self.model.model
        if self.args.visual_loss is None or not core.visual_tokenizer.variable_num_tokens:
            return None
        is_text = not any(name in batch for name in core.image_inputs)
        if is_text and not self._blank_images.are_needed_to_predict:
            return None
        shown = self._blank_images.add_to(batch) if is_text else batch
        images = self._prepare_inputs({name: shown[name] for name in core.image_inputs if name in shown})
        rest_frozen_parts(self.model, self.trainable)
        with self.accelerator.autocast(), whole_root(self.model):
            mask = core.get_adapter_features(**images).token_mask
        return None if is_text else mask

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the stage, with no matrix of logits; a part of its mean over all batches of the step."""
        inputs = {
            **inputs,
            "visual_loss": self.args.visual_loss,
            "visual_loss_weight": self.args.visual_loss_weight,
            "loss_implementation": self.args.loss_implementation,
            "num_visual_items": self._num_visual_items,
        }
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._note(inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _note(self, inputs: Mapping[str, Any], outputs: Any) -> None:
        for name in SUMS:
            if (part := getattr(outputs, name)) is not None:
                self._since_log[name] = self._since_log.get(name, 0.0) + part.detach() / self.get_tp_size()
        if self.args.stage in VISUAL_LOSSES:
            predicted = self._predicted(inputs, outputs)
            if (
                predicted or self._last_predicted is None
            ):  # one without positions counts nothing, and has a length of 0
                self._last_predicted = predicted

    def _predicted(self, inputs: Mapping[str, Any], outputs: Any) -> PredictedPositions | None:
        if outputs.image_hidden_states is None or self._last_states.states is None:
            return None
        placeholders = self.model.model.find_placeholders(inputs["input_ids"])
        return PredictedPositions.of(
            placeholders, outputs.visual_positions, self._last_states.states, outputs.image_hidden_states
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            first = {"loss": logs["loss"], **self._means_since_log()}
            rate = self._clock.read()
            logs = {**first, **logs, **({} if rate is None else {"tokens_per_second": rate})}
        super().log(logs, start_time)

    def _means_since_log(self) -> dict[str, float]:
        """The parts of the loss as Trainer means their sum, and the statistics of the last images."""
        sums = self._taken_together(self._since_log)
        steps = max(round(sums.get("steps", 1)), 1)
        found = {name: sums[name] / steps for name in SUMS if name in sums}
        if self.args.stage in VISUAL_LOSSES:
            measured = enumerate(self.statistics.sums(self._last_predicted))
            found |= statistics_of(list(self._taken_together({str(n): value for n, value in measured}).values()))
            self._last_predicted = None
        return found

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss; of each row which answers are exactly right; and what [`VisualModelingMetrics`] makes means of."""
        inputs = dict(self._prepare_inputs(inputs))
        labels = inputs.pop("labels", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None:
                outputs = model(**inputs, logits_to_keep=inputs["input_ids"].new_empty(0))
                losses = torch.zeros(len(inputs["input_ids"]), 2, device=self.args.device)
                right = torch.full((len(losses), 1), IGNORED, device=self.args.device)
            else:
                outputs, right, losses = self._measure_answers(model, inputs, labels)
            if self.args.stage in VISUAL_LOSSES:
                predicted = self._predicted(inputs, outputs)
                by_row = self.statistics.by_row(predicted, len(losses), reverse=self.args.stage == "visual_tokens")
                losses = torch.cat([losses, by_row.to(losses)], dim=1)
        measured = VisualModelingMetrics(self.args.stage, self.args.visual_loss_weight)
        loss = torch.tensor(measured.loss(losses.sum(0).tolist()), device=self.args.device)
        return (loss, None, None) if prediction_loss_only else (loss, right, losses)

    def evaluate(self, *args, **kwargs):
        """`Trainer.evaluate`, which leaves the random numbers and the clock of training alone."""
        with self._clock.stopped():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self._clock.stopped():
            return super()._save_checkpoint(*args, **kwargs)


def count_items(
    batch: Mapping[str, torch.Tensor], image_token_id: int, token_mask: torch.Tensor | None = None
) -> list[int]:
    """
    What a batch has of that losses are means over.

    Args:
        batch (`dict`): of a [`VisualLanguageCollator`] or [`ImageCollator`].
        image_token_id (`int`): the placeholder of image positions.
        token_mask (`torch.BoolTensor` of shape `(num_images, num_tokens)`, *optional*):
            False at placeholders that an image leaves unused; by default none is.

    Returns:
        `list[int]`: numbers of predicted labels, of predicted image positions, and of all tokens but padding.
    """
    input_ids, mask = batch["input_ids"], batch.get("attention_mask")
    labels = batch.get("labels")
    placeholders = input_ids == image_token_id
    used = used_placeholders(placeholders, token_mask)
    unused = placeholders & ~used
    predicted = predicted_image_positions(used, mask, batch.get("position_ids"), unused=unused)
    if mask is None:
        num_tokens = input_ids.numel()
    elif mask.ndim == 2:
        num_tokens = int(mask.sum())
    else:  # padding attends to itself alone, and so does the first token of a row
        num_tokens = int((mask[:, 0].sum(-1) > 1).sum()) + len(mask)
    num_labels = 0 if labels is None else int((labels[:, 1:] != IGNORED).sum())
    return [num_labels, int(predicted.sum()), num_tokens - int(unused.sum())]


def _check_model(model: PreTrainedModel, args: VisualModelingConfig) -> None:
    if "vm_head" not in getattr(type(model), "trainable_parts", {}):
        raise ValueError(
            f"{type(model).__name__} has no VM head, and is trained with VisualLanguageTrainer: give a "
            "VTLMMForCausalLM."
        )
    if model.config.pseudo_image_features and args.stage != "visual_modeling":
        raise ValueError(
            f"config.pseudo_image_features is on, but the stage {args.stage} is trained without (Eq. 8): load the "
            "model with pseudo_image_features=False, and turn it on in the stage visual_modeling."
        )


__all__ = ["VisualModelingTrainer", "count_items"]
