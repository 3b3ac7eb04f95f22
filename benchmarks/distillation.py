"""
A step of feature distillation beside what it cannot do without: the teacher's forward pass, and the student's forward
and backward pass.

    vistok fetch dinov2-small
    python -m benchmarks.distillation

"Alone" runs teacher and student by themselves, the backward pass from a random gradient of the student's features.
The step is that of FeatureDistillationTrainer: renormalised pixels, teacher, student, projection, whitening, loss,
backward pass, and the check that the loss is a number. Neither has the optimizer's update, which is the same for both.
"Cached" is the step with the teacher's features from the cache, read from disk, which needs fixed images. CPU time on
one thread, the median over rounds that take turns; ratios are to "alone" within a round. Making the batch of augmented
images is listed too: data loader workers do it beside the training.
"""

import statistics
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, report
from vistok import FeatureDistillationConfig, FeatureDistillationTrainer
from vistok.modeling.base_checkpoints import load_vision_tower
from vistok.modeling.base_weights import resolve_checkpoint
from vistok.modeling.distillation_students import random_student
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.distillation_collator import at_size

# Other statistics than the student's, so that pixels are renormalised.
TEACHER_MEAN = [0.48145466, 0.4578275, 0.40821073]


def examples(folder: Path, count: int) -> Dataset:
    """Images of coloured noise, of the size of photographs on the web."""
    rows = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        pixels = torch.randint(
            0, 256, (375, 500, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
        )
        Image.fromarray(pixels.numpy()).save(path)
        image = {"path": str(path), "bytes": None}
        rows.append({"id": str(number), "source": "noise", "row": number, "images": [image], "messages": []})
    return Dataset.from_list(rows, features=FEATURES)


def make_trainer(checkpoint: str, folder: Path, images: Dataset, image_size: int, cached: bool):
    teacher = load_vision_tower(checkpoint, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(resolve_checkpoint(checkpoint))
    teacher_processor = at_size(processor, image_size)
    teacher_processor.image_mean = TEACHER_MEAN
    args = FeatureDistillationConfig(
        output_dir=str(folder / "run"),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=len(images),
        max_steps=1,
        warmup_epochs=0,
        drop_path_rate=0.0,
        image_size=image_size,
        augment=not cached,
        cache_teacher_features=cached,
        feature_cache_dir=str(folder / "cache"),
    )
    return FeatureDistillationTrainer(
        random_student(teacher.config, image_size),
        teacher,
        args,
        images,
        processing_class=processor,
        teacher_processing_class=teacher_processor,
    )


def measure(checkpoint: str, image_size: int, batch_size: int, rounds: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = examples(folder, batch_size)
        trainers = [make_trainer(checkpoint, folder, images, image_size, cached) for cached in (False, True)]
        plain, cached = trainers
        for trainer in trainers:
            trainer.current_gradient_accumulation_steps = 1  # which train() sets
        rows = list(plain.train_dataset)
        batches = [trainer.data_collator(rows) for trainer in trainers]
        pixel_values = batches[0]["pixel_values"]
        student, teacher = plain.student.train(), plain.teacher
        direction = torch.randn_like(student(pixel_values).last_hidden_state)

        def alone() -> None:
            plain.model.zero_grad(set_to_none=True)
            with torch.no_grad():
                teacher(pixel_values)
            student(pixel_values).last_hidden_state.backward(direction)

        def step(trainer, batch) -> None:
            trainer.model.train()
            trainer.model.zero_grad(set_to_none=True)
            trainer.training_step(trainer.model, dict(batch))

        def cached_step() -> None:
            # Of a batch, only the teacher's features come anew: fixed images could be kept as well.
            features = cached.data_collator.teacher_features
            batch = {**batches[1], "teacher_features": torch.stack([features[key] for key in features])}
            step(cached, batch)

        functions = {
            "teacher forward + student forward and backward, alone": alone,
            "step": lambda: step(plain, batches[0]),
            "step, teacher cached": cached_step,
            "batch of augmented images": lambda: plain.data_collator(rows),
        }
        seconds = interleaved_seconds(functions, rounds)
        base = seconds[next(iter(functions))]
        return [
            {
                "pixels": image_size,
                "what": label,
                "ms per image": 1e3 * statistics.median(times) / batch_size,
                "ratio to alone": f"{median_ratio(times, base):.3f}",
            }
            for label, times in seconds.items()
        ]


def main() -> None:
    options = parse_arguments(
        __doc__,
        rounds=9,
        teacher={"default": "vistok:dinov2-small", "help": "name, folder or Hub id of the teacher"},
        sizes={"type": int, "nargs": "+", "default": [112, 224], "help": "sides of the images in pixels"},
        batch={"type": int, "default": 16, "help": "images per step"},
    )
    rounds, batch_size = (1, 2) if options.quick else (options.rounds, options.batch)
    rows = [row for size in options.sizes for row in measure(options.teacher, size, batch_size, rounds)]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
