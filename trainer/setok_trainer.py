"""Training of SeTok in the two sub-phases of its stage I (SeTok, Section 2.2), on transformers' Trainer."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from ..configuration.configuration_setok import LOSS_TERMS
from ..evaluation.token_sources import TokenSource
from ..modeling.completed_model import check_weights
from ..modeling.divided_weights import whole_root
from ..modeling.modeling_setok import SeTokForPreTraining
from ..modeling.modeling_setok_vision import SeTokVisionOutput
from ..modeling.trained_weights import (
    TRAINED_WEIGHTS_NAME,
    CheckpointError,
    load_trained_state_dict,
    read_trained_weights,
    trained_state_dict,
    write_safetensors,
)
from ..processing.feature_cache import FeatureCache, FeatureCacheBuilder, feature_settings
from .endless_stream import EndlessStream
from .final_folder import replacing_files
from .freezing import FreezeCheckCallback, rest_frozen_parts, set_trainable, upcast_trained
from .kept_tokens import KEPT, KeptTokens
from .masked_images import MASKS
from .part_learning_rates import check_learning_rates
from .reproducible_trainer import ReproducibleTrainer, check_datasets, named_datasets
from .seeded_augmentation import number_examples
from .setok_collator import SeTokCollator
from .setok_config import SeTokTrainingConfig
from .setok_measures import (
    SeTokMetrics,
    counts_of,
    first_images,
    image_metrics,
    image_rows,
    num_images,
    num_own_images,
)
from .setok_pictures import image_panel, masks_panel, tokens_panel, write_grid
from .shared_feature_cache import build_together

NOT_OF_MODEL = ("num_objects", "patch_labels", "noise_seeds")
COUNTED = "images"


class SeTokTrainer(ReproducibleTrainer):
    """
    Trains a tokenizer with its decoders in one of the two sub-phases of stage I.

    Args:
        model ([`SeTokForPreTraining`]): frozen and opened as the phase says.
        args ([`SeTokTrainingConfig`]): `phase`, and what is otherwise than the paper has it.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`, *optional*): training examples (see
            [`load_data_source`]), of which the first image is read; in the phase `"boundaries"` with masks, of the
            formats `object-masks` and `scene-masks`.
        processing_class: image processor of the vision tower, from transformers; saved beside the model.
        kwargs: passed to `transformers.Trainer`.

    Raises:
        ValueError: if a data set is empty, the model lacks what the phase trains, or features of a stream are to be
            cached.

    Losses are means over all matched objects, or all images, of a step: of all its batches and processes. Beside
    `loss` (what is minimised) a training logs `loss_<term>` of each term of [`SeTokForPreTrainingOutput`], a mean over
    everything since the last log; `tokens_mean`, `tokens_min` and `tokens_max` per image, and where there are masks
    `tokens_rank_correlation` with the number of objects. Evaluation reports the same, `eval_total_loss`, and
    `eval_ari` and `eval_iou`, of clusters and objects on the patch grid.
    """

    args: SeTokTrainingConfig

    def __init__(
        self,
        model: SeTokForPreTraining,
        args: SeTokTrainingConfig,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class: Any = None,
        **kwargs,
    ):
        if processing_class is None:
            raise ValueError("SeTok's images are prepared by an image processor: give it as processing_class.")
        check_datasets(args, train_dataset, eval_dataset)
        config: Any = model.config
        self.trainable = {**config.phase_trainable(args.phase), **(args.trainable or {})}
        check_learning_rates(args.learning_rates or {}, self.trainable)
        set_trainable(model, self.trainable)
        model.added_weights = getattr(model, "added_weights", set()) | {
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        upcast_trained(model)
        model.to(args.device)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False
        self.source = TokenSource("", model.vision_model, processing_class, True)
        draws = args.phase == "reconstruction" or args.reconstruct_boundaries
        if draws and model.detokenizer is None:
            raise ValueError("reconstruct_boundaries needs a detokenizer: give SeTokConfig a detokenizer_config.")
        collator = SeTokCollator(
            processing_class,
            self.source.grid_size,
            draw_size=config.detokenizer_config.image_size if draws else None,
            with_masks=args.phase == "boundaries",
            mask_scale=args.mask_scale,
            max_objects=args.max_objects,
            seed=args.seed,
        )
        if args.cache_features:
            features = self._cache_features(args, train_dataset, eval_dataset)
            collator.features = features
            if args.keep_tokens:
                collator.tokens = KeptTokens(model.vision_model, features, self.source.grid_size)
        if isinstance(train_dataset, IterableDataset):
            train_dataset = EndlessStream(train_dataset)
        if train_dataset is not None:
            train_dataset = number_examples(train_dataset)
        weights = {name: float(getattr(config, f"{name}_weight")) for name in LOSS_TERMS}
        self.weights, self._totals = weights, {"images": 1, "objects": 1}
        kwargs.setdefault("compute_metrics", SeTokMetrics(weights))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collator,
            # Noise is to be the same, whenever evaluation takes place.
            eval_collator=dataclasses.replace(collator, epoch=torch.zeros((), dtype=torch.long)),
            **kwargs,
        )
        vars(config).pop("use_cache", None)  # Trainer's mark
        self.model_accepts_loss_kwargs = True  # compute_loss divides by what a whole step has
        self.collator = collator
        self.add_callback(FreezeCheckCallback(self.trainable))
        self.add_callback(_SampleCallback(self))

    def _cache_features(self, args, train_dataset, eval_dataset) -> FeatureCache:
        datasets = named_datasets(train_dataset, eval_dataset)
        for name, dataset in datasets.items():
            if isinstance(dataset, IterableDataset):
                raise ValueError(f"cache_features needs data of known size: load {name} with streaming off.")
        examples = (
            {**example, "images": example["images"][:1]}
            for dataset in datasets.values()
            if dataset is not None
            for example in dataset
        )
        builder = FeatureCacheBuilder(
            self.source.model.vision_tower,
            self.source.patch_features,
            feature_settings(self.source.feature_layer, self.source.image_processor),
            examples,
            getattr(torch, args.feature_cache_dtype),
            args.feature_cache_dir,
            progress_bar=not args.disable_tqdm,
            # As SeTokCollator.image reads them.
            load_options={"apply_exif_orientation": False} if _have_masks(datasets.values()) else None,
        )
        return build_together(builder, args)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Counts images and objects of a step, on all processes: what its losses are means over."""
        most = self.model.config.vision_config.max_tokens
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batch_samples:
            counts[0] += num_images(batch)
            if "num_objects" in batch:
                counts[1] += batch["num_objects"].clamp(max=most).sum().to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0)
        images, objects = counts.clamp(min=1).tolist()
        self._totals = {"images": images, "objects": objects}
        return counts[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted terms of the phase; in training a part of their means over all batches of the step."""
        if not model.training:
            outputs = self._run(model, inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        rest_frozen_parts(self.model, self.trainable)
        outputs = self._run(model, inputs)
        terms = []
        for name, count in counts_of(outputs, len(outputs.mask)).items():
            term = outputs[f"loss_{name}"]
            total = self._totals["objects" if name.startswith("mask_") else "images"]
            terms.append(self.weights[name] * term * (count / total))
            self._add(f"sum/{name}", float(term.detach()) * count)
            self._add(f"count/{name}", count)
        objects = inputs.get("num_objects")
        for place, tokens in enumerate(outputs.mask.sum(1).tolist()):
            self._add(f"{COUNTED}/{tokens}/{-1 if objects is None else int(objects[place])}", 1)
        loss = torch.stack(terms).sum() * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _run(self, model, inputs: Mapping[str, Any]):
        given = {name: value for name, value in inputs.items() if name not in NOT_OF_MODEL}
        if "tokens" in inputs:
            known = {name: given.pop(name) for name in (*KEPT, "grid_size")}
            given["encoded"] = SeTokVisionOutput(**known)
        if "noise_seeds" in inputs:
            seeds = inputs["noise_seeds"].tolist()
            given["generator"] = [torch.Generator(self.args.device).manual_seed(seed) for seed in seeds]
        return model(**given, phase=self.args.phase, return_dict=True)

    def _add(self, name: str, value: float) -> None:
        self._since_log[name] = self._since_log.get(name, 0.0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {"loss": logs["loss"], **self._means_since_log(), **logs}
        super().log(logs, start_time)

    def _means_since_log(self) -> dict[str, float]:
        sums = self._taken_together(self._since_log)
        found = {
            f"loss_{name}": sums[f"sum/{name}"] / sums[f"count/{name}"]
            for name in LOSS_TERMS
            if sums.get(f"count/{name}", 0) > 0
        }
        rows = []
        for name in sorted(sums):
            if name.startswith(f"{COUNTED}/"):
                tokens, objects = map(int, name.split("/")[1:])
                row = [tokens, np.nan if objects < 0 else objects, np.nan, np.nan, np.nan]
                rows += [row] * int(sums[name])
        return {**found, **image_metrics(np.array(rows, dtype=np.float64))}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and what [`SeTokMetrics`] makes means of."""
        inputs = self._prepare_inputs(inputs)
        batch_size = num_images(inputs)
        state = self.accelerator.gradient_state
        remainder = state.remainder if state.end_of_dataloader else 0
        own = num_own_images(batch_size, self.args.process_index, remainder)
        # A process that has none runs the model too, which others may be waiting for.
        inputs = first_images(inputs, max(own, 1))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        found = image_rows(outputs, inputs.get("num_objects"), inputs.get("patch_labels"))
        rows = found.new_zeros(batch_size, found.shape[1])
        rows[:own] = found[:own]
        rows = rows.to(self.args.device)  # from those of all processes accelerate drops what is behind their own
        return loss.detach(), rows, rows.new_zeros(len(rows))  # Trainer computes metrics where there are labels

    @torch.no_grad()
    def write_samples(self, path: str | os.PathLike) -> None:
        """
        Draws the first images of the evaluation data, or else of the training data, as the model sees them now. Where
        weights are divided among processes, all of them have to call it; one writes.

        Args:
            path (`str`): PNG file.
        """
        dataset = next((part for part in named_datasets(None, self.eval_dataset).values() if part is not None), None)
        dataset = self.train_dataset if dataset is None else dataset
        some = [example for example, _ in zip(iter(dataset), range(self.args.num_samples))]
        images = [self.collator.image(example) for example in some]
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        with whole_root(model):
            columns = self._samples(model, images)
        model.train(training)
        if self.is_world_process_zero():
            write_grid(list(zip(*columns.values())), list(columns), Path(path))

    def _samples(self, model: Any, images: list) -> dict[str, list]:
        """Pictures of what becomes of some images, by the name of their column."""
        pixel_values = self.processing_class(images=images, return_tensors="pt")["pixel_values"]
        encoded = model.vision_model(pixel_values.to(self.args.device), return_dict=True)
        size = encoded.grid_size
        shown = [image_panel(pixels) for pixels in self.collator.targets(images, 16 * max(size))]
        assignments = encoded.assignment.view(-1, *size).cpu().numpy()
        columns = {
            "input": shown,
            "tokens": [tokens_panel(image, tokens) for image, tokens in zip(shown, assignments)],
        }
        if model.detokenizer is not None:
            generators = [torch.Generator(self.args.device).manual_seed(self.args.seed) for _ in images]
            drawn = model.reconstruct(encoded.tokens, encoded.mask, generators, self.args.sample_inference_steps)
            columns["reconstruction"] = [image_panel(pixels) for pixels in drawn]
        logits = model.decode_masks(encoded.tokens, encoded.mask, encoded.patch_features, size)
        columns["masks"] = [
            masks_panel(*pair) for pair in zip(shown, (one[m] for one, m in zip(logits, encoded.mask)))
        ]
        return columns

    def _save(self, output_dir: str | None = None, state_dict=None):
        """A checkpoint on the way: what is trained alone, under its own names. The rest is frozen."""
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        model = self.accelerator.unwrap_model(self.model)
        model.config.save_pretrained(folder)
        trained = trained_state_dict(model)
        if state_dict is not None:  # gathered from several devices
            trained = {name: state_dict[name] for name in trained}
        trained = {name: tensor.cpu().contiguous() for name, tensor in trained.items()}
        write_safetensors(trained, folder / TRAINED_WEIGHTS_NAME)
        self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        if self.weights_are_divided:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        return self._load_trained(resume_from_checkpoint)

    def _load_best_model(self):
        if self.weights_are_divided:
            return super()._load_best_model()
        return self._load_trained(str(self.state.best_model_checkpoint))

    def _load_trained(self, folder: str) -> None:
        model = self.accelerator.unwrap_model(self.model)
        trained = read_trained_weights(folder)
        if trained is None:
            raise CheckpointError(
                f"{folder} holds no {TRAINED_WEIGHTS_NAME}: resume from a checkpoint of this trainer."
            )
        expected = {name: tensor.shape for name, tensor in trained_state_dict(model).items()}
        try:
            check_weights(folder, trained, expected)
        except CheckpointError as error:
            raise CheckpointError(f"{error} Resume with the model, phase and trainable of that run.") from error
        load_trained_state_dict(model, trained)

    def save_final(self, folder: str | os.PathLike) -> None:
        """
        Saves the whole trained model and its image processor for use. The folder has all of it in the end, or none.
        All processes have to call it, and one of them writes.

        Args:
            folder (`str`): where; files of other names stay.
        """
        with self.model_to_save(self.accelerator.unwrap_model(self.model)) as model:
            if model is not None:
                self._save_whole(model, folder)

    def _save_whole(self, model: SeTokForPreTraining, folder: str | os.PathLike) -> None:
        base_models = model.config.base_models
        with replacing_files(folder) as temporary:
            model.config.base_models = None  # nothing is left to be completed
            try:
                model.save_pretrained(temporary)
            finally:
                model.config.base_models = base_models
            self.processing_class.save_pretrained(temporary)


def _have_masks(datasets: Iterable[Any]) -> bool:
    return any(MASKS in (dataset.column_names or ()) for dataset in datasets if dataset is not None)


class _SampleCallback(TrainerCallback):
    def __init__(self, trainer: SeTokTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        draws = state.is_world_process_zero or self.trainer.weights_are_divided
        if args.sample_steps and state.global_step % args.sample_steps == 0 and draws:
            random_state = torch.get_rng_state()
            self.trainer.write_samples(Path(str(args.output_dir), "samples", f"step-{state.global_step:06d}.png"))
            torch.set_rng_state(random_state)


__all__ = ["SeTokTrainer"]
