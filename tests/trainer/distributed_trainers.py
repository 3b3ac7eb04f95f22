"""Every trainer of vistok on a tiny model: two steps of four examples, on any number of processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import BitsAndBytesConfig, TrainingArguments, ViTImageProcessorPil

from tests.tiny import save_base_models, tiny_dinov2_config, tiny_image_processor
from tests.tiny_setok import tiny_setok
from tests.trainer import tiny_setokim_training, tiny_visual_modeling
from tests.trainer.conftest import RESAMPLER
from tests.trainer.planted_boxes import save_boxes
from tests.trainer.tiny_distillation import distillation_trainer, image_rows
from tests.trainer.tiny_training import question, questions
from vistok import (
    GVTForConditionalGeneration,
    GVTProcessor,
    SeTokTrainer,
    SeTokTrainingConfig,
    VisualLanguageConfig,
    VisualLanguageTrainer,
    load_data_source,
)
from vistok.trainer.class_supervision import ClassSupervisionTrainer, class_dataset, class_supervised_model
from vistok.trainer.data_examples import FEATURES

# Of two processes that take rows in turn, the first has no image in one step and one less than the second in the
# other.
WITH_IMAGES = {1, 3, 4, 5, 7}
# Where a loss is the mean of a batch, the last one counts what it repeats to be as large as the others.
WHOLE_BATCHES = range(4)
SETTINGS = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 2,
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.5,  # less than there is
    "train_sampling_strategy": "sequential",
    "per_device_eval_batch_size": 2,
    "dataloader_pin_memory": False,
}


def prepare(folder: Path) -> None:
    """The base models and data that the trainers read."""
    torch.manual_seed(0)
    save_base_models(folder / "base")
    (folder / "setok").mkdir()
    tiny_setokim_training.save_setok_and_text(folder / "setok")
    save_boxes(folder / "boxes", 8)
    (folder / "pictures").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")


def some_with_images(count: int = 8, images=WITH_IMAGES) -> Dataset:
    return Dataset.from_list([question(i, i if i in images else None) for i in range(count)], features=FEATURES)


def base_models(folder: Path) -> tuple[str, str]:
    return str(folder / "base" / "vision"), str(folder / "base" / "text")


def visual_language(
    folder: Path, data: Any, dtype: torch.dtype | None = torch.float64, quantization_config=None, **options
) -> VisualLanguageTrainer:
    bases = base_models(folder)
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    torch.manual_seed(0)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*bases, **RESAMPLER, **quantized)
    model = model if dtype is None else model.to(dtype)
    processor = GVTProcessor.from_vision_text_pretrained(*bases, num_image_tokens=RESAMPLER["num_latents"])
    args = VisualLanguageConfig(**options)
    return VisualLanguageTrainer(model, args, data, questions(5), processing_class=processor)


def gvt(folder: Path, **options) -> VisualLanguageTrainer:
    return visual_language(folder, some_with_images(), **options)


def gvt_lora(folder: Path, **options) -> VisualLanguageTrainer:
    """A stream; everything is trained in some way, and the final folder is an ordinary model."""
    parts = {"vision": "full", "resampler": "full", "llm": "lora"}
    lora = {"r": 2, "init_lora_weights": False}
    data = some_with_images().to_iterable_dataset(num_shards=1)
    return visual_language(folder, data, trainable=parts, lora=lora, save_trained_only=False, **options)


def gvt_qlora(folder: Path, **options) -> VisualLanguageTrainer:
    parts = {"vision": "lora", "resampler": "full", "llm": "lora"}
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return visual_language(folder, some_with_images(), None, four_bits, trainable=parts, lora={"r": 2}, **options)


def gvt_shared_rows(folder: Path, **options) -> VisualLanguageTrainer:
    """Questions about one image share a row, and the second step has one with an image, for the first process."""
    rows = [question(i, i // 2 if i < 10 else None) for i in range(16)]
    data = Dataset.from_list(rows, features=FEATURES)
    cached = {"cache_features": True, "feature_cache_dir": f"{options['output_dir']}-features"}
    return visual_language(folder, data, torch.float32, conversations_per_row=2, **cached, **options)


def visual_modeling(stage: str, images=WITH_IMAGES) -> Callable[..., Any]:
    def make(folder: Path, **options):
        bases = base_models(folder)
        return tiny_visual_modeling.trainer_of(
            tiny_visual_modeling.compose_vtlmm(bases), tiny_visual_modeling.vtlmm_processor(bases),
            options.pop("output_dir"), stage, some_with_images(images=images), some_with_images(7), **options,
        )  # fmt: skip

    return make


def distillation(folder: Path, **options):
    """With crops and masks of its own for each image, and a rate that goes with the batch of all processes."""
    rates = {"learning_rate": 12.8, "warmup_start_learning_rate": 1.0, "final_learning_rate": 1.0}
    options |= {**rates, "lr_scheduler_type": "cosine", "warmup_steps": 1, "scale_learning_rates": True}
    place = options.pop("output_dir")
    return distillation_trainer(place, image_rows(8), image_rows(5), mask_ratio=0.4, **options)


def setok(phase: str, **factors: float) -> Callable[..., SeTokTrainer]:
    def make(folder: Path, **options):
        torch.manual_seed(0)
        model = tiny_setok(vision={"cluster_projection_layers": 1})
        data = load_data_source({"format": "object-masks", "path": str(folder / "boxes")})
        rates = {part: factor * options["learning_rate"] for part, factor in factors.items()}
        options |= {"learning_rates": rates, "sample_steps": 2, "num_samples": 1, "sample_inference_steps": 1}
        args = SeTokTrainingConfig(phase=phase, **options)
        processor = ViTImageProcessorPil(size={"height": 24, "width": 24}, do_resize=True)
        return SeTokTrainer(model, args, data, data.select(WHOLE_BATCHES), processor)

    return make


def setokim(stage: str) -> Callable[..., Any]:
    def make(folder: Path, **options):
        tiny = tiny_setokim_training
        bases = str(folder / "setok" / "setok"), str(folder / "setok" / "text")
        tasks = ("generate", "edit", None, None, "segment", None)
        rows = [tiny.task_example(number, tasks[number % len(tasks)]) for number in range(8)]
        # In the second step each process has text alone once, while the other has a mask or an edit.
        rows[5:7] = [{**question(number), "task": None} for number in (5, 6)]
        data = Dataset.from_list(rows, features=tiny.ALL_FEATURES)
        return tiny.trainer_of(
            tiny.compose_setokim(bases), tiny.setokim_processor(bases), options.pop("output_dir"), stage, data,
            data.select(range(7)), trainable={"mask_decoder": "full"}, sample_steps=2, num_samples=1,
            sample_inference_steps=1, token_bank_size=7, learning_rates={"projections": 0.02}, **options,
        )  # fmt: skip

    return make


def class_supervision(folder: Path, **options) -> ClassSupervisionTrainer:
    model = class_supervised_model(tiny_dinov2_config(), ["first", "second"], image_size=24)
    files = [str(folder / "pictures" / f"{number}.png") for number in range(8)]
    data = class_dataset(files, [[number % 2, number // 2 % 2] for number in range(8)])
    return ClassSupervisionTrainer(
        model, TrainingArguments(**options), data, data.select(WHOLE_BATCHES), tiny_image_processor()
    )


TRAINERS: dict[str, Callable[..., Any]] = {
    "VisualLanguageTrainer": gvt,
    "VisualLanguageTrainer, all parts, LoRA": gvt_lora,
    "VisualLanguageTrainer, QLoRA": gvt_qlora,
    "VisualLanguageTrainer, shared rows": gvt_shared_rows,
    "VisualModelingTrainer, alignment": visual_modeling("alignment"),
    "VisualModelingTrainer, instruction": visual_modeling("instruction"),
    "VisualModelingTrainer, visual tokens": visual_modeling("visual_tokens", range(8)),
    "VisualModelingTrainer, visual modeling": visual_modeling("visual_modeling"),
    "FeatureDistillationTrainer": distillation,
    "SeTokTrainer, reconstruction": setok("reconstruction", mapper=10),
    "SeTokTrainer, boundaries": setok("boundaries", merger=0.1),
    "SetokimTrainer, pretraining": setokim("pretraining"),
    "SetokimTrainer, instruction": setokim("instruction"),
    "ClassSupervisionTrainer": class_supervision,
}
