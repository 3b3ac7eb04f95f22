"""Models that write images and masks for the examples of a task, each condition of it by name."""

import functools
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from ..modeling.base_weights import resolve_checkpoint
from ..modeling.modeling_setok import SeTokForPreTraining
from ..modeling.modeling_setokim import SetokimForConditionalGeneration
from ..modeling.trained_setok import without_detokenizer
from ..processing.drawn_images import drawing_targets, picture_of
from ..processing.images import load_example_images
from ..processing.processing_setokim import Task
from ..processing.setokim_pipeline import SetokimPipeline
from .cluster_baselines import grid_clusters
from .image_controls import GREY
from .segmentation_scores import mask_overlap

Written = list[tuple[Image.Image, dict[str, Any]]]
NEEDS_DETOKENIZER = ("reconstruction", "generation", "editing")


@dataclass(frozen=True)
class Drawing:
    """
    How images are drawn.

    Args:
        seed (`int`, *optional*, defaults to 0): of the noise; an image's depends on this and its example's id alone.
        num_inference_steps (`int`, *optional*): of the diffusion; by default those of the model's config.
        guidance_scale (`float`, *optional*): of its classifier-free guidance; by default that of the config.
    """

    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None

    def options(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Arguments of [`SeTokForPreTraining.reconstruct`] for the images of examples."""
        numbers = [zlib.crc32(f"{self.seed} {example['id']}".encode()) for example in examples]
        return {
            "generator": [torch.Generator().manual_seed(number) for number in numbers],
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }


class TokenizerWriter:
    """
    Draws images from the tokens of SeTok, and of what there is to compare them with.

    Args:
        setok ([`SeTokForPreTraining`]): in evaluation mode.
        image_processor: of its tower.
        drawing ([`Drawing`], *optional*): how.
        keeps_tokens (`bool`, *optional*, defaults to `False`): whether facts hold the tokens of images that are drawn
            from some, `(num_tokens, token_size)`, with four decimals.

    Raises:
        ValueError: if there is no detokenizer.
    """

    def __init__(
        self,
        setok: SeTokForPreTraining,
        image_processor: Any,
        drawing: Drawing = Drawing(),
        keeps_tokens: bool = False,
    ):
        if setok.detokenizer is None:
            raise ValueError(
                "This SeTok has no detokenizer, so there are no images to measure: give a model that was trained with "
                "one (SeTokConfig(detokenizer_config=…), phase reconstruction)."
            )
        self.setok, self.image_processor, self.drawing = setok, image_processor, drawing
        self.keeps_tokens = keeps_tokens

    @property
    def side(self) -> int:
        """Side of the images that are drawn, in pixels."""
        return self.setok.detokenizer.config.image_size

    @property
    def has_autoencoder(self) -> bool:
        """Whether the diffusion works on latents, which lose something by themselves."""
        return self.setok.detokenizer.vae is not None

    @torch.no_grad()
    def __call__(self, condition: str, examples: list[Mapping[str, Any]]) -> Written:
        """
        Draws for examples: `"given"`, their images from their tokens; `"grid"`, from tokens of as many cells of a
        plain grid, merged and drawn by the same weights; `"blank_images"`, from the tokens of a grey image;
        `"autoencoder"`, through VAE alone; `"targets"`, the image as it is to be drawn; `"true_tokens"` as `"given"`.
        """
        pictures = [load_example_images(example)[-1] for example in examples]
        if condition == "targets":
            return self.targets(pictures)
        if condition == "autoencoder":
            targets = drawing_targets(self.image_processor, pictures, self.side).to(self.setok.device)
            detokenizer = self.setok.detokenizer
            drawn = detokenizer.decode_latents(detokenizer.encode_images(targets))
            return [(picture_of(image), {}) for image in drawn]
        if condition == "blank_images":
            pictures = [Image.new("RGB", picture.size, GREY) for picture in pictures]
        encoded = self.encode(pictures)
        if condition == "grid":
            counts = encoded.mask.sum(1).tolist()
            assignment = torch.stack([grid_clusters(encoded.grid_size, count) for count in counts])
            encoded = self.setok.vision_model(
                patch_features=encoded.patch_features, grid_size=encoded.grid_size, assignment=assignment
            )
        drawn = self.drawn(encoded.tokens, encoded.mask, examples)
        if condition == "given":  # for pictures of the tokens
            for (_, facts), assignment in zip(drawn, encoded.assignment.tolist()):
                facts |= {"assignment": assignment, "grid_size": list(encoded.grid_size)}
        return drawn

    def encode(self, pictures: Sequence[Image.Image]) -> Any:
        """The tokens of pictures, with all that [`SeTokVisionModel`] tells of them."""
        pixel_values = self.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return self.setok.vision_model(pixel_values.to(self.setok.device, self.setok.dtype))

    def drawn(self, tokens: torch.Tensor, mask: torch.Tensor, examples: Sequence[Mapping[str, Any]]) -> Written:
        """Images from tokens."""
        images = self.setok.reconstruct(tokens, mask, **self.drawing.options(examples))
        written: Written = [
            (picture_of(image), {"num_tokens": int(count)}) for image, count in zip(images, mask.sum(1))
        ]
        if self.keeps_tokens:
            for (_, facts), own, is_token in zip(written, tokens, mask.bool()):
                facts["tokens"] = [[round(value, 4) for value in token] for token in own[is_token].tolist()]
        return written

    def targets(self, pictures: Sequence[Image.Image]) -> Written:
        """Pictures at the size at which they are drawn."""
        found = drawing_targets(self.image_processor, pictures, self.side)
        return [(picture_of(image), {}) for image in found]


class CaptionWriter:
    """
    Draws what captions and instructions ask for, through tokens that a language model writes.

    Args:
        pipeline ([`SetokimPipeline`]): model and processor.
        drawing ([`Drawing`], *optional*): how.
        keeps_tokens (`bool`, *optional*, defaults to `False`): see [`TokenizerWriter`].

    Raises:
        ValueError: if the model's SeTok has no detokenizer.
    """

    def __init__(self, pipeline: SetokimPipeline, drawing: Drawing = Drawing(), keeps_tokens: bool = False):
        self.pipeline, self.drawing = pipeline, drawing
        self.tokenizer = TokenizerWriter(
            pipeline.model.model.setok, pipeline.processor.image_processor, drawing, keeps_tokens
        )

    @property
    def side(self) -> int:
        """Side of the images that are drawn, in pixels."""
        return self.tokenizer.side

    @torch.no_grad()
    def __call__(self, condition: str, examples: list[Mapping[str, Any]]) -> Written:
        """
        Draws for examples: `"given"`, what their text asks for, of their first image where they have one to edit;
        `"copied_source"`, that image as it is; `"true_tokens"`, the image that is right from its own tokens, and
        `"targets"`, that image itself.
        """
        if condition == "copied_source":
            return self.tokenizer.targets([load_example_images(example)[0] for example in examples])
        if condition != "given":
            return self.tokenizer(condition, examples)
        shown = [load_example_images({**example, "images": example["images"][:-1]}) for example in examples]
        pictures = [images[0] for images in shown] if all(shown) else None
        task: Task = "generate" if pictures is None else "edit"
        inputs = self.pipeline.task_inputs(task, [example["text"] for example in examples], pictures)
        tokens, mask = self.pipeline.model.write_image(**inputs)
        return self.tokenizer.drawn(tokens, mask, examples)


class MaskWriter:
    """
    Writes masks for expressions, and what there is to compare them with.

    Args:
        pipeline ([`SetokimPipeline`]): model and processor.
        batch_size (`int`, *optional*, defaults to 16): expressions at once.
    """

    def __init__(self, pipeline: SetokimPipeline, batch_size: int = 16):
        self.pipeline, self.batch_size = pipeline, batch_size

    @torch.no_grad()
    def __call__(self, condition: str, examples: list[Mapping[str, Any]]) -> Written:
        """
        Masks for examples: `"given"`, of their expression; `"shuffled_expressions"`, of their column `other`;
        `"whole_image"`, everything; `"largest_cluster"`, the largest of the tokenizer's clusters; `"best_cluster"`,
        the one that is closest to the mask that is right; `"best_token_mask"`, what the mask decoder makes of that of
        the tokenizer's own tokens which it comes closest with; `"targets"`, the mask that is right.
        """
        pictures = [load_example_images(example)[0] for example in examples]
        if condition in ("given", "shuffled_expressions"):
            texts = [example["text" if condition == "given" else "other"] for example in examples]
            return [_mask(mask) for mask in self.pipeline.segment(pictures, texts, batch_size=self.batch_size)]
        if condition == "whole_image":
            return [_mask(np.ones((picture.height, picture.width), dtype=bool)) for picture in pictures]
        targets = [true_mask(example) for example in examples]
        if condition == "targets":
            return [_mask(target) for target in targets]
        encoded = self._encode(pictures)
        masks = _token_masks if condition == "best_token_mask" else _cluster_masks
        found = []
        for row, (picture, target) in enumerate(zip(pictures, targets)):
            choices = masks(self.pipeline.model.model.setok, encoded, row, (picture.height, picture.width))
            if condition == "largest_cluster":
                chosen = max(choices, key=np.count_nonzero)
            else:
                chosen = max(choices, key=functools.partial(_iou, target=target))
            found.append(_mask(chosen))
        return found

    def _encode(self, pictures: Sequence[Image.Image]) -> Any:
        model = self.pipeline.model
        pixel_values = self.pipeline.processor.image_processor(images=list(pictures), return_tensors="pt")[
            "pixel_values"
        ]
        return model.model.setok.vision_model(pixel_values.to(model.device, model.dtype))


def true_mask(example: Mapping[str, Any]) -> np.ndarray:
    """
    The mask that is right: the last image of an example, white where the object is.

    Args:
        example (`dict`): of the task `"segment"`.

    Returns:
        `np.ndarray` of shape `(height, width)` and dtype bool.
    """
    return np.asarray(load_example_images(example)[-1].convert("L")) >= 128


def _mask(mask: np.ndarray) -> tuple[Image.Image, dict[str, Any]]:
    return Image.fromarray(mask.astype(np.uint8) * 255).convert("1"), {}


def _iou(mask: np.ndarray, target: np.ndarray) -> float:
    if mask.shape != target.shape:
        raise ValueError(
            f"A mask has {target.shape[0]} × {target.shape[1]} pixels (height × width) and its image "
            f"{mask.shape[0]} × {mask.shape[1]}: give masks that belong to the images."
        )
    shared, united = mask_overlap(mask, target)
    return shared / united if united else 1.0


def _cluster_masks(setok: Any, encoded: Any, row: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Every cluster as the pixels of its patches."""
    rows, columns = (np.arange(pixels) * patches // pixels for pixels, patches in zip(size, encoded.grid_size))
    grid = encoded.assignment[row].reshape(encoded.grid_size).cpu().numpy()
    pixels = grid[rows][:, columns]
    return [pixels == number for number in np.unique(grid)]


def _token_masks(setok: Any, encoded: Any, row: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Every token of the tokenizer as the mask decoder draws it."""
    real = encoded.mask[row]
    tokens = encoded.tokens[row][real][None]
    logits = setok.decode_masks(tokens, None, encoded.patch_features[row][None], encoded.grid_size, size)
    return list((logits[0].float() >= 0).cpu().numpy())


def load_writer(
    path: str | os.PathLike,
    task: str,
    drawing: Drawing = Drawing(),
    dtype: str = "auto",
    device: str = "cpu",
    attn_implementation: str | None = None,
    batch_size: int = 16,
) -> tuple[Any, Any, Any]:
    """
    Loads what writes the images or masks of a task.

    Args:
        path (`str`): folder or Hub id of a Setokim; to reconstruct, of a SeTok too.
        task (`str`): `"reconstruction"`, `"referring"`, `"generation"` or `"editing"`.
        drawing ([`Drawing`], *optional*): how images are drawn.
        dtype, device, attn_implementation: of the model.
        batch_size (`int`, *optional*, defaults to 16): expressions at once.

    Returns:
        `tuple`: the writer, one of the classes above; the model; and its processor, of a SeTok its image processor.

    Raises:
        ValueError: if it is a model of another kind, or draws no images where the task needs some.
        OSError, CheckpointError: if there is no such model, or it is damaged.
    """
    folder = resolve_checkpoint(str(path))
    kind = AutoConfig.from_pretrained(folder).model_type
    wanted = ("setok", "setokim") if task == "reconstruction" else ("setokim",)
    if kind not in wanted:
        raise ValueError(
            f"Task {task} is for models of type {' or '.join(wanted)}, and {path} is of type {kind}: name the folder "
            "of a trained " + ("SeTok or Setokim." if task == "reconstruction" else "Setokim.")
        )
    extra: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if kind == "setok":
        setok = SeTokForPreTraining.from_pretrained(folder, dtype=dtype, **extra).to(device).eval()
        image_processor = AutoImageProcessor.from_pretrained(folder)
        return TokenizerWriter(setok, image_processor, drawing), setok, image_processor
    if task not in NEEDS_DETOKENIZER:
        extra |= without_detokenizer(folder)
    pipeline = SetokimPipeline.from_pretrained(folder, dtype=dtype, **extra)
    model: SetokimForConditionalGeneration = pipeline.model
    model.to(device).eval()
    if task == "referring":
        return MaskWriter(pipeline, batch_size), model, pipeline.processor
    if task == "reconstruction":
        writer = TokenizerWriter(model.model.setok, pipeline.processor.image_processor, drawing)
        return writer, model, pipeline.processor
    return CaptionWriter(pipeline, drawing, keeps_tokens=task == "generation"), model, pipeline.processor


__all__ = ["CaptionWriter", "Drawing", "MaskWriter", "TokenizerWriter", "load_writer", "true_mask"]
