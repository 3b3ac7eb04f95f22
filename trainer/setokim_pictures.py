"""Pictures of what Setokim writes so far: what is asked, shown, wanted and written, side by side."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..processing.images import load_image
from .image_answers import TASK_PROMPTS, read_mask
from .setok_pictures import SIDE, image_panel, write_grid
from .setokim_collator import SEGMENT

COLUMNS = ("asked", "shown", "wanted", "written")
TINT = np.array([255.0, 40.0, 40.0])
_LINE = 24  # letters
_SCANNED = 2000  # examples of a data set that are looked at for tasks


def write_samples(model: Any, processor: Any, datasets: Iterable[Any], args: Any, path: Path | None) -> None:
    """
    Draws what a model writes for the first examples of each task. Where nothing asks for an image that it can draw, no
    file is written.

    Args:
        model ([`SetokimForConditionalGeneration`]): in evaluation mode.
        processor ([`SetokimProcessor`]): that goes with it.
        datasets (`list[Dataset]`): training examples; those with a `task` are drawn.
        args ([`SetokimTrainingConfig`]): how many of each task, and how.
        path (`Path`, *optional*): PNG file; without one, nothing is written.
    """
    tasks = [task for task in TASK_PROMPTS if task == SEGMENT or model.model.setok.detokenizer is not None]
    rows = [
        panels
        for task, examples in examples_of_tasks(datasets, args.num_samples).items()
        if task in tasks
        for panels in _panels(model, processor, task, examples, args)
    ]
    if rows and path is not None:
        write_grid(rows, COLUMNS, path)


def examples_of_tasks(datasets: Iterable[Any], number: int) -> dict[str, list[Mapping[str, Any]]]:
    """
    The first examples of each task.

    Args:
        datasets (`list[Dataset]`): training examples.
        number (`int`): of each task, at most.

    Returns:
        `dict[str, list[dict]]`: by task, those that there are.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for dataset in datasets:
        for example, _ in zip(_with_tasks(dataset), range(_SCANNED)):
            task = example.get("task")
            if task in TASK_PROMPTS and len(found.setdefault(task, [])) < number:
                found[task].append(example)
            if len(found) == len(TASK_PROMPTS) and all(len(some) == number for some in found.values()):
                return found
    return found


def _with_tasks(dataset: Any) -> Iterable[Mapping[str, Any]]:
    names = getattr(dataset, "column_names", None)
    return () if names is not None and "task" not in names else dataset


@torch.no_grad()
def _panels(model, processor, task: str, examples, args) -> list[tuple[Image.Image, ...]]:
    device = model.device
    asked = [_question(example) for example in examples]
    images = [[load_image(image) for image in example["images"][:-1]] for example in examples]
    shown = [one[-1] if one else Image.new("RGB", (SIDE, SIDE), "white") for one in images]
    prompts = [_prompt(processor, example["messages"]) for example in examples]
    given = {} if task == "generate" else {"images": images}
    inputs = processor(text=prompts, padding=True, padding_side="left", return_tensors="pt", **given).to(device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.model.vision_tower.dtype)
    if task == SEGMENT:
        sizes = [one.size[::-1] for one in shown]
        masks = model.segment(**inputs, sizes=sizes).masks
        wanted = [_tinted(one, read_mask(example["images"][-1])) for one, example in zip(shown, examples)]
        written = [_tinted(one, mask.cpu().numpy()) for one, mask in zip(shown, masks)]
    else:
        wanted = [load_image(example["images"][-1]) for example in examples]
        drawn = model.generate_images(
            **inputs,
            generator=[torch.Generator(device).manual_seed(args.seed) for _ in examples],
            num_inference_steps=args.sample_inference_steps,
            guidance_scale=args.sample_guidance_scale,
        )
        written = [image_panel(pixels) for pixels in drawn.images]
    return list(zip(map(text_panel, asked), shown, wanted, written))


def _prompt(processor: Any, messages) -> str:
    """The conversation up to the image that is written: it ends in `[Img]`."""
    text = processor.apply_chat_template([list(messages)], tokenize=False)[0]
    return text[: text.rindex(processor.image_token)] + processor.image_start_token


def _question(example: Mapping[str, Any]) -> str:
    turns = [message["content"] for message in example["messages"] if message["role"] == "user"]
    return " ".join(part["text"] for part in turns[-1] if part["type"] == "text")


def text_panel(text: str) -> Image.Image:
    """
    Words as a panel of a picture.

    Args:
        text (`str`): words; what does not fit is left out.
    """
    panel = Image.new("RGB", (SIDE, SIDE), "white")
    lines = textwrap.wrap(text, _LINE)[:12]
    ImageDraw.Draw(panel).multiline_text((8, 8), "\n".join(lines), fill="black", font=ImageFont.load_default(16))
    return panel


def _tinted(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """An image with a mask on it, the rest of it darker."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    inside = mask[..., None]
    return Image.fromarray(np.where(inside, 0.5 * pixels + 0.5 * TINT, 0.6 * pixels).round().astype(np.uint8))


__all__ = ["examples_of_tasks", "text_panel", "write_samples"]
