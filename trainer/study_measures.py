"""What a study measures of trained models: answers to questions, attention maps, and what their towers still tell."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from ..evaluation.attention_maps import query_attention, seen_image
from ..evaluation.attention_statistics import attention_numbers, mask_on_grid
from ..evaluation.generation import generate_answers
from ..evaluation.representation_quality import label_floors, representation_quality
from ..evaluation.study_tasks import TaskQuestions, class_labels, load_task, scene_objects
from ..evaluation.vqa import answer_of, question_of
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.distillation_students import random_student
from ..processing.images import load_image
from .distillation_collator import at_size
from .distillation_probe import labelled_images
from .study_encoders import MODEL, encoder_model, scene_folders
from .study_jobs import read_json, write_json
from .study_plan import KEPT_SCENES

logger = logging.get_logger(__name__)

ATTENTION = "attention.npz"


def _load(folder: Path, dtype: str = "auto") -> tuple[Any, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extra = {"attn_implementation": "eager"} if device == "cpu" else {}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **extra).to(device).eval()
    return model, AutoProcessor.from_pretrained(folder)


def load_questions(evaluation: Mapping[str, Any], scenes: str) -> dict[str, TaskQuestions]:
    """The questions of all tasks of a study, by task; `evaluation` of its recipe says how many."""
    seed, mode = evaluation.get("seed", 0), evaluation.get("mode", "strict")
    return {
        task: load_task(task, Path(scenes), (options or {}).get("num_questions"), seed, mode)
        for task, options in evaluation["tasks"].items()
    }


def answer_questions(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Asks a trained model the questions of all tasks, about the scenes and about one another's scenes.

    Args:
        config (`dict`): `model`, the job that trained it, and `evaluation` of the study.
        folder (`Path`): of the job. Answers go to `predictions` in it, and what lies there is not asked again.
        output (`Path`): folder of the study.

    Returns:
        `dict`: for each task `score` (percent, of captions CIDEr), `shuffled` (the score with other scenes), `gain`
        (how much higher the same questions score with their own scenes), further accuracies such as that in the other
        mode, `num_questions`, `num_unanswered`, and of each question `values`, `images` and `parts`; of those that
        were asked about other scenes `shuffled_values` and their places among all, `shuffled_places`.
    """
    evaluation = config["evaluation"]
    model, processor = _load(output / config["model"] / MODEL, evaluation.get("dtype", "auto"))
    measured: dict[str, Any] = {}
    for task, questions in load_questions(evaluation, scene_folders(output)["test"]).items():
        fewer = questions.some(evaluation.get("num_shuffled"), evaluation.get("seed", 0))
        given, shuffled = (
            _answers(model, processor, asked, evaluation, images, folder / "predictions")
            for images, asked in (("given", questions), ("shuffled", fewer))
        )
        values, without, places = questions.values(given), fewer.values(shuffled), questions.places(fewer)
        measured[task] = {
            "score": float(np.mean(values)),
            "shuffled": float(np.mean(without)),
            "gain": float(np.mean([values[place] - other for place, other in zip(places, without, strict=True)])),
            "num_questions": len(values),
            "num_shuffled": len(without),
            "num_unanswered": questions.num_unanswered(given),
            "values": [round(value, 4) for value in values],
            "images": questions.images,
            "parts": questions.parts,
            "shuffled_values": [round(value, 4) for value in without],
            "shuffled_places": places,
            **{name: float(np.mean(questions.values(given, name))) for name in questions.other_metrics},
        }
    return measured


def _answers(model, processor, questions: TaskQuestions, evaluation, images: str, folder: Path) -> list[str]:
    path = folder / f"{questions.task}-{images}.json"
    if (answered := read_json(path)) is not None:
        return [entry["prediction"] for entry in answered]
    folder.mkdir(exist_ok=True)
    predictions = generate_answers(
        model,
        processor,
        questions.examples,
        batch_size=evaluation.get("batch_size", 32),
        max_new_tokens=evaluation.get("max_new_tokens", 24),
        images=images,
        seed=evaluation.get("seed", 0),
        progress_bar=False,
    )
    asked = [(question_of(example), answer_of(example)) for example in questions.examples]
    columns = ("image", "question", "answer", "prediction")
    rows = ((image, *texts, text) for image, texts, text in zip(questions.images, asked, predictions))
    write_json(path, [dict(zip(columns, row)) for row in rows])
    logger.info(f"{len(predictions)} answers to {questions.task} ({images} images).")
    return predictions


def measure_attention(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Looks at what the queries of a model's resampler look at (GVT, Figure 3), and keeps the maps that may be drawn.

    Args:
        config (`dict`): `model`, the job that trained it, `num_scenes` to measure on, and `layer` of the resampler.
        folder (`Path`): of the job. `attention.npz` in it gets the maps of all queries and heads on the first scenes,
            their pixels, and the numbers of the objects there, from 1.
        output (`Path`): folder of the study.

    Returns:
        `dict`: of each scene the numbers of [`attention_numbers`], and `images`, its id.
    """
    scenes = Path(scene_folders(output)["test"])
    model, processor = _load(output / config["model"] / MODEL)
    images = json.loads((scenes / "instances.json").read_text(encoding="utf-8"))["images"][: config["num_scenes"]]
    ids = [image["id"] for image in images]
    maps: list[np.ndarray] = []
    grids: list[np.ndarray] = []
    kept: dict[str, list[np.ndarray]] = {"maps": [], "pixels": [], "objects": []}
    for image, masks in zip(images, scene_objects(scenes, ids)):
        source = scenes / "images" / Path(image["file_name"]).name
        maps.append(query_attention(model, processor, source, config["layer"]))
        union = np.any([np.zeros((image["height"], image["width"]), dtype=bool), *masks], axis=0)
        grids.append(mask_on_grid(_seen_mask(processor, union), maps[-1].shape[-2:]))
        if len(kept["maps"]) < KEPT_SCENES:
            pixels = np.asarray(seen_image(model, processor, load_image(source)))
            kept["maps"].append(maps[-1].astype(np.float16))
            kept["pixels"].append(pixels)
            kept["objects"].append(_numbered(processor, masks, pixels.shape[:2]))
    with open(folder / ATTENTION, "wb") as file:
        arrays: dict[str, Any] = {name: np.stack(values) for name, values in kept.items()}
        np.savez_compressed(file, **arrays)
    return {**attention_numbers(maps, grids), "images": ids}


def _numbered(processor: Any, masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    numbers = np.zeros(size, dtype=np.uint8)
    for number, mask in enumerate(masks, start=1):
        numbers[_seen_mask(processor, mask)[: size[0], : size[1]] > 0.5] = min(number, 255)
    return numbers


def _seen_mask(processor: Any, mask: np.ndarray) -> np.ndarray:
    """A mask as the model sees it: the image processor does to it what it does to the pixels of the image."""
    white = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    plain = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    seen = processor.image_processor(images=[white], **plain)["pixel_values"][0]
    return np.asarray(seen[0], dtype=np.float64) / 255


def probe_tower(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    What a tower tells about objects that are no class of the study: k nearest neighbours and linear probe name the
    object of pictures with a single one.

    Args:
        config (`dict`): `encoder` or `model` (the job that trained it), `feature_layer`, `image_size`, `probe` of the
            study, and `random_seed` of the random tower of the same architecture to measure beside, if any.
        folder (`Path`): of the job.
        output (`Path`): folder of the study.

    Returns:
        `dict`: `tower`, and `random` if it was asked for, as from [`representation_quality`]; `floors` (see
        [`label_floors`]).
    """
    if "model" in config:
        model, its_processor = _load(output / config["model"] / MODEL)
        tower, processor = model.model.vision_tower.float(), its_processor.image_processor
    else:
        path = resolve_checkpoint(encoder_model(output, config["encoder"]))
        tower, processor = AutoModel.from_pretrained(path).eval(), AutoImageProcessor.from_pretrained(path)
        tower = getattr(tower, "vision_model", tower)  # of one that reads text, too
        processor = processor if config["image_size"] is None else at_size(processor, config["image_size"])
    classes, _, _ = class_labels(Path(scene_folders(output)["test"]))
    train, test = probe_images(config["probe"], classes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"feature_layer": config["feature_layer"], "k": config["probe"].get("k", 20)}
    found = {"tower": representation_quality(tower.to(device), processor, train, test, **options)}
    if config.get("random_seed") is not None:
        path = resolve_checkpoint(encoder_model(output, config["encoder"]))
        other = random_student(AutoConfig.from_pretrained(path), config["image_size"], config["random_seed"])
        found["random"] = representation_quality(other.to(device).eval(), processor, train, test, **options)
    return {**found, "floors": label_floors(train[1], test[1])}


def probe_images(probe: Mapping[str, Any], classes: Sequence[str]) -> tuple[tuple[list, list], tuple[list, list]]:
    """
    Pictures of single objects that are of none of some classes; training and test share the nouns, but no cut-out.

    Args:
        probe (`dict`): `num_train` and `num_test` scenes to render, `size` and `seed`.
        classes (`list[str]`): of the study.

    Returns:
        Images and nouns of the training and of the test.

    Raises:
        ValueError: if nothing is left.
    """
    found = {}
    for split in ("train", "test"):
        options = {"num_scenes": probe[f"num_{split}"], "single_fraction": 1.0}
        options |= {"size": probe.get("size", 112), "scene_seed": probe.get("seed", 0)}
        source = {"format": "cutout-scenes", "name": f"probe-{split}", "split": split, "options": options}
        found[split] = labelled_images(source, "answer", {"kind": "naming"})
    nouns = set(found["train"][1]) & set(found["test"][1]) - set(classes)
    chosen = []
    for images, labels in found.values():
        pairs = [(image, label) for image, label in zip(images, labels, strict=True) if label in nouns]
        chosen.append(([image for image, _ in pairs], [label for _, label in pairs]))
    if not all(images for images, _ in chosen):
        raise ValueError("No picture of the probe shows an object outside the study's classes: raise probe.num_train.")
    return chosen[0], chosen[1]


__all__ = [
    "ATTENTION",
    "answer_questions",
    "load_questions",
    "measure_attention",
    "probe_images",
    "probe_tower",
]
