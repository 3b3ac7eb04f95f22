"""Images for prompts, edited images and masks for expressions, from pictures and text to pictures."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from ..modeling.base_checkpoints import hub_arguments
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.modeling_setokim import SetokimForConditionalGeneration
from .drawn_images import picture_of
from .images import ImageSource, load_image
from .processing_setokim import SetokimProcessor, Task

_LARGEST_SEED = 2**63


class SetokimPipeline:
    """
    What a Setokim does besides answering in text (for which there is transformers' `pipeline("image-text-to-text")`):
    it generates images, edits and segments them.

    Args:
        model ([`SetokimForConditionalGeneration`]): in evaluation mode.
        processor ([`SetokimProcessor`]): that of the model.

    Raises:
        ValueError: if they do not belong together; names what differs.

    Example:

    ```python
    >>> pipeline = SetokimPipeline.from_pretrained("runs/setokim")
    >>> (image,) = pipeline.generate_images("three red balls on grass", seed=0)
    >>> (edited,) = pipeline.edit_images(image, "remove one of the balls", seed=0)
    >>> (mask,) = pipeline.segment(edited, "the left ball")
    >>> mask.shape, mask.dtype
    ((64, 64), dtype('bool'))
    ```"""

    def __init__(self, model: SetokimForConditionalGeneration, processor: SetokimProcessor):
        own = {name: getattr(model.config, name) for name in ("image_start_token_id", "image_end_token_id")}
        own |= {
            "image_token_id": model.config.image_token_id,
            "num_image_tokens": model.model.visual_tokenizer.max_num_tokens,
        }
        for name, value in own.items():
            if getattr(processor, name) != value:
                raise ValueError(
                    f"{name} of the processor is {getattr(processor, name)}, of the model {value}: load both from one "
                    "folder, or compose both of the same checkpoints."
                )
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, **kwargs) -> "SetokimPipeline":
        """
        Loads model and processor.

        Args:
            name_or_path (`str`): folder, Hub id, or name of what ships (`vistok:setokim-demo`).
            kwargs: for the model's `from_pretrained`, such as `dtype` and `device_map`; those that say where on the
                Hub it lies, such as `revision` and `token`, for that of the processor too.

        Raises:
            ValueError: if nothing ships by this name.
        """
        checkpoint = resolve_checkpoint(name_or_path)
        model = SetokimForConditionalGeneration.from_pretrained(checkpoint, **kwargs)
        return cls(model, AutoProcessor.from_pretrained(checkpoint, **hub_arguments(kwargs)))

    def generate_images(
        self, prompts: str | Sequence[str], *, seed: int | None = None, batch_size: int = 8, **kwargs
    ) -> list[Image.Image]:
        """
        Images for prompts.

        Args:
            prompts (`str` or `list[str]`): what the images show.
            seed (`int`, *optional*):
                Of the noise that images are drawn from, and of the visual tokens where `token_temperature` draws
                them: image i from `seed + i`, whatever the batch. Sampled visual token numbers (`do_sample=True`)
                follow it too, batch by batch.
            batch_size (`int`, *optional*, defaults to 8): images that are made together.
            kwargs: `num_inference_steps`, `guidance_scale`, `max_image_tokens`, `token_temperature`, …: of
                [`SetokimWriting.generate_images`].

        Returns:
            `list[PIL.Image.Image]`: one for each prompt.

        Raises:
            TypeError: if prompts are no text, or the seed is no whole number.
            ValueError: if there are no prompts, one is empty, the seed is out of range, or the model draws no images.
        """
        return self._draw("generate", None, _listed(prompts), seed, batch_size, kwargs)

    def edit_images(
        self,
        images: ImageSource | Sequence[ImageSource],
        instructions: str | Sequence[str],
        *,
        seed: int | None = None,
        batch_size: int = 8,
        **kwargs,
    ) -> list[Image.Image]:
        """
        What instructions make of images.

        Args:
            images (`PIL.Image.Image`, path or bytes, or a list of them): the sources; one alone goes with all
                instructions.
            instructions (`str` or `list[str]`): what is to be changed.
            seed, batch_size, kwargs: as in [`SetokimPipeline.generate_images`].

        Returns:
            `list[PIL.Image.Image]`: one for each instruction.

        Raises:
            ValueError: if there are not as many images as instructions; and as there.
        """
        texts = _listed(instructions)
        return self._draw("edit", _paired(images, texts, "instructions"), texts, seed, batch_size, kwargs)

    def segment(
        self,
        images: ImageSource | Sequence[ImageSource],
        expressions: str | Sequence[str],
        *,
        batch_size: int = 8,
        **kwargs,
    ) -> list[np.ndarray]:
        """
        Masks of what expressions refer to.

        Args:
            images (`PIL.Image.Image`, path or bytes, or a list of them): one alone goes with all expressions.
            expressions (`str` or `list[str]`): what is to be found.
            batch_size (`int`, *optional*, defaults to 8): masks that are made together.
            kwargs: `threshold`, …: of [`SetokimWriting.segment`].

        Returns:
            `list[np.ndarray]`: for each expression, boolean, of the height and width of its image.

        Raises:
            TypeError: if expressions are no text.
            ValueError: if there are not as many images as expressions, an expression is empty, or the image processor
                crops or pads images, so that masks would not fit them.
        """
        prepares = self.processor.image_processor
        if getattr(prepares, "do_center_crop", False) or getattr(prepares, "do_pad", False):
            raise ValueError(
                "The image processor crops or pads images, so masks would not fit them: set do_center_crop and do_pad "
                "to False, as SetokimProcessor.from_vision_text_pretrained does."
            )
        _check_options(kwargs, {"max_new_tokens", "max_image_tokens", "write_images", "choose_tokens"})
        texts = _listed(expressions)
        pictures = _paired(images, texts, "expressions")
        masks: list[np.ndarray] = []
        for part in _batches(len(texts), batch_size):
            inputs = self.task_inputs("segment", texts[part], pictures[part])
            sizes = [(picture.height, picture.width) for picture in pictures[part]]
            masks += [mask.cpu().numpy() for mask in self.model.segment(**inputs, sizes=sizes, **kwargs).masks or []]
        return masks

    def _draw(self, task: Task, pictures, texts, seed, batch_size, kwargs) -> list[Image.Image]:
        _check_options(kwargs, {"max_new_tokens", "write_images"})
        seed = _checked_seed(seed, len(texts))
        drawn: list[Image.Image] = []
        for part in _batches(len(texts), batch_size):
            inputs = self.task_inputs(task, texts[part], None if pictures is None else pictures[part])
            generators = None
            if seed is not None:
                generators = [torch.Generator().manual_seed(seed + index) for index in range(part.start, part.stop)]
            with _seeded(None if seed is None else seed + part.start):
                images: Any = self.model.generate_images(**inputs, **{"generator": generators, **kwargs}).images
            drawn += [picture_of(image) for image in images]
        return drawn

    def task_inputs(
        self, task: Task, texts: Sequence[str], pictures: Sequence[Image.Image] | None = None
    ) -> dict[str, Any]:
        """
        What the model takes to write an image or a mask for each text.

        Args:
            task (`"generate"`, `"edit"` or `"segment"`): what is asked for.
            texts (`list[str]`): prompts, instructions or expressions.
            pictures (`list[PIL.Image.Image]`, *optional*): the image that each is about; none to generate.

        Returns:
            `dict`: `input_ids`, `attention_mask` and, with pictures, `pixel_values`, on the model's device.
        """
        prompts = [self.processor.task_prompt(task, text) for text in texts]
        images = {} if pictures is None else {"images": [[picture] for picture in pictures]}
        inputs = self.processor(text=prompts, **images, return_tensors="pt", padding=True)
        names = ("input_ids", "attention_mask", "pixel_values")
        return {name: inputs[name].to(self.model.device) for name in names if name in inputs}


def _listed(texts: str | Sequence[str]) -> list[str]:
    is_many = isinstance(texts, Iterable) and not isinstance(texts, (str, bytes, Mapping))
    listed: list[Any] = list(texts) if is_many else [texts]
    if not all(isinstance(text, str) for text in listed):
        raise TypeError(
            f"What to do is {texts!r}, expected a text or a list of them: a prompt, or images and then instructions "
            "or expressions."
        )
    if not listed:
        raise ValueError("There is no text: give one prompt, instruction or expression at least.")
    return listed


def _check_options(given: Mapping[str, Any], fixed: set[str]) -> None:
    if foreign := sorted(given.keys() & fixed):
        raise ValueError(f"{foreign[0]} is no option here, where what is asked for decides on it: leave it out.")


def _checked_seed(seed: int | None, count: int) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed is {seed!r}, expected one whole number: image i is drawn from seed + i.")
    if not 0 <= seed <= _LARGEST_SEED - count:
        raise ValueError(f"seed is {seed}, expected 0 to {_LARGEST_SEED - count} for {count} images.")
    return int(seed)


def _paired(images: Any, texts: list[str], called: str) -> list[Image.Image]:
    if images is None:
        raise ValueError(f"There are {len(texts)} {called} and no images: give the image that each is about.")
    if not isinstance(images, (list, tuple)):
        return [load_image(images)] * len(texts)
    if len(images) != len(texts):
        raise ValueError(
            f"There are {len(images)} images for {len(texts)} {called}: give an image for each, or one alone, not in "
            "a list, for all."
        )
    return [load_image(image) for image in images]


def _batches(length: int, batch_size: int) -> Iterator[slice]:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more.")
    for start in range(0, length, batch_size):
        yield slice(start, min(start + batch_size, length))


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Random numbers from a seed, after which the caller's go on as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


__all__ = ["SetokimPipeline"]
