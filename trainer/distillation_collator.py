"""Batches of images for student and teacher: the same crops, at the size of each, and which patches are masked."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..modeling.vision_features import patch_grid
from ..processing.augmentation import RandomResizedCropAndFlip
from ..processing.feature_cache import FeatureCache
from ..processing.images import image_key, load_example_images
from .distinct_images import images_in
from .feature_distillation_config import FeatureDistillationConfig
from .seeded_augmentation import draws_of


@dataclass
class DistillationCollator:
    """
    Prepares the first image of each example. What is drawn depends on the example and the epoch alone: neither
    resuming, nor the number of workers or processes, changes it.

    Args:
        image_processor: the student's, made by [`at_size`].
        teacher_image_processor (*optional*): the teacher's, if it sees images of another size.
        transform (`RandomResizedCropAndFlip`, *optional*): augmentation, at the student's size.
        teacher_features (`FeatureCache`, *optional*): in place of a run of the teacher.
        num_patches (`int`): of an image.
        num_masked (`int`): patches of each image that are hidden from the student.
        seed (`int`): of the training.
        epoch (`torch.LongTensor` of shape `()`): current epoch; shared with data loader workers.
    """

    image_processor: Any
    teacher_image_processor: Any = None
    transform: RandomResizedCropAndFlip | None = None
    teacher_features: FeatureCache | None = None
    num_patches: int = 0
    num_masked: int = 0
    seed: int = 0
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_())

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Makes a batch.

        Args:
            examples (`list[dict]`): with an image each, in a list `images` or as `image`.

        Returns:
            `dict`: `pixel_values`; `teacher_pixel_values` if the teacher's images are of another size;
            `teacher_features` if they are cached; `masked_patches`, `(batch, num_patches)`, if some are.

        Raises:
            BadSampleError: if an image cannot be read.
        """
        first = [images_in(example)[0] for example in examples]
        images = [
            load_example_images({**example, "images": [image]})[0]
            for example, image in zip(examples, first, strict=True)
        ]
        batch = {"pixel_values": self._pixels(self.image_processor, images, examples)}
        if self.teacher_features is not None:
            batch["teacher_features"] = torch.stack([self.teacher_features[image_key(image)] for image in first])
        elif self.teacher_image_processor is not None:
            batch["teacher_pixel_values"] = self._pixels(self.teacher_image_processor, images, examples)
        if self.num_masked:
            batch["masked_patches"] = torch.stack([self._mask(example) for example in examples])
        return batch

    def _pixels(self, processor: Any, images: list[Image.Image], examples: Sequence[Mapping[str, Any]]):
        if self.transform is not None:
            # The same crop at any size.
            transform = dataclasses.replace(self.transform, size=processor.size["height"])
            images = [
                self._augmented(image, transform, example) for image, example in zip(images, examples, strict=True)
            ]
        return processor(images, return_tensors="pt")["pixel_values"]

    def _augmented(
        self, image: Image.Image, transform: RandomResizedCropAndFlip, example: Mapping[str, Any]
    ) -> Image.Image:
        with draws_of(example, self.seed, int(self.epoch)):
            return transform(image)

    def _mask(self, example: Mapping[str, Any]) -> torch.Tensor:
        with draws_of(example, self.seed, int(self.epoch), "mask"):
            order = torch.randperm(self.num_patches)
        return torch.zeros(self.num_patches, dtype=torch.bool).index_fill(0, order[: self.num_masked], True)


def at_size(image_processor: Any, image_size: int) -> Any:
    """
    An image processor that resizes whole images to a square, without a crop.

    Args:
        image_processor: of transformers. It stays as it is.
        image_size (`int`): side in pixels.
    """
    image_processor = copy.deepcopy(image_processor)
    image_processor.size = {"height": image_size, "width": image_size}
    image_processor.do_resize, image_processor.do_center_crop = True, False
    return image_processor


def processor_size(image_processor: Any) -> int:
    """
    The side of the images that an image processor makes, in pixels.

    Args:
        image_processor: of transformers.

    Raises:
        ValueError: if it makes no squares of one size.
    """
    size = image_processor.size
    if getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None):
        size = image_processor.crop_size
    if size.get("height") and size.get("height") == size.get("width"):
        return size["height"]
    if size.get("shortest_edge"):
        return size["shortest_edge"]
    raise ValueError(f"The image processor makes images of size {dict(size)}: set image_size to the side of a square.")


def image_sizes(
    args: FeatureDistillationConfig, student: PreTrainedModel, teacher: PreTrainedModel, image_processor: Any
) -> tuple[int, int]:
    """
    Sides of the images of student and teacher, in pixels.

    Args:
        args ([`FeatureDistillationConfig`]): says both, or neither.
        student, teacher (`PreTrainedModel`): cut them into patches.
        image_processor: the student's, which makes them where the arguments say nothing.

    Raises:
        ValueError: if they are cut into different patches.
    """
    student_size = args.image_size or processor_size(image_processor)
    teacher_size = args.teacher_image_size or student_size
    grids = [
        patch_grid(tower.config, (size, size)) for tower, size in ((student, student_size), (teacher, teacher_size))
    ]
    if grids[0] != grids[1]:
        raise ValueError(
            f"The student cuts its images of {student_size} pixels into {grids[0][0]} × {grids[0][1]} patches, and "
            f"the teacher its images of {teacher_size} pixels into {grids[1][0]} × {grids[1][1]}: features are "
            f"compared patch by patch. {_fitting_size(teacher, grids[0])}change image_size; in a recipe both "
            "are called image_size, in the sections teacher and student."
        )
    return student_size, teacher_size


def _fitting_size(teacher: PreTrainedModel, grid: tuple[int, int]) -> str:
    """The teacher's size, in words, at which it has this grid of patches, if a square has."""
    patch_size = teacher.config.patch_size
    height, width = patch_size if isinstance(patch_size, list | tuple) else (patch_size, patch_size)
    size = grid[0] * height
    return f"Set teacher_image_size to {size}, or " if size == grid[1] * width else "Choose other patches, or "


__all__ = ["DistillationCollator", "at_size", "image_sizes", "processor_size"]
