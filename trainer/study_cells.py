"""A cell of a study: a model is trained on top of an encoder, answers the questions, and is looked at."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from ..evaluation.attention_maps import query_attention, seen_image
from ..evaluation.attention_statistics import attention_numbers, mask_on_grid
from ..evaluation.generation import generate_answers
from ..evaluation.study_tasks import TaskQuestions, load_task, scene_masks
from ..evaluation.vqa import answer_of, question_of, question_only_prior
from ..processing.images import load_image
from .data_sources import load_data_source
from .recipe import recipe_from_dict
from .run_recipe import run_recipe
from .scene_set import write_scenes
from .study_encoders import MODEL, encoder_model, make_encoder, scene_folders
from .study_jobs import read_json, write_json
from .study_recipe import fill_in, merge

logger = logging.get_logger(__name__)

ATTENTION = "attention.npz"
_KEPT_OF_TRAINING = ("steps", "epochs", "train_loss", "train_seconds", "parameters", "recipe", "log_history")


def make_scenes(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Renders the scenes of a split; those of the test are held against the training's.

    Args:
        config (`dict`): arguments of [`write_scenes`].
        folder (`Path`): of the job; the scenes go to `data` in it.
        output (`Path`): folder of the study.

    Returns:
        `dict`: numbers of `images`, `objects` and `classes`.
    """
    if not (folder / "data").exists():  # it is there as a whole, or not at all
        others = [place for split, place in scene_folders(output).items() if split == "train" != config["split"]]
        write_scenes(folder / "data", apart_from=others, **config)
    document = json.loads((folder / "data" / "instances.json").read_text(encoding="utf-8"))
    counted = {"images": "images", "objects": "annotations", "classes": "categories"}
    return {name: len(document[key]) for name, key in counted.items()}


def make_floors(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    What the questions yield without any image.

    Args:
        config (`dict`): `evaluation`, and `data` of the training.
        folder, output (`Path`): as in [`make_scenes`].

    Returns:
        `dict`: for each task `num_questions`, `majority` (one constant guess) and `question_only_prior` (the most
        frequent answer in training to exactly this question), in percent, of captions as CIDEr.
    """
    places, evaluation = scene_folders(output), config["evaluation"]
    sources = fill_in(config["data"].get("train") or [], places)
    train = [example for source in sources for example in load_data_source(source).select_columns(["messages"])]
    floors = {}
    for task, questions in _questions(evaluation, places["test"]).items():
        guesses = {
            "majority": questions.majority(),
            "question_only_prior": question_only_prior(train, questions.examples),
        }
        floors[task] = {"num_questions": len(questions.examples), "num_images": len(set(questions.images))} | {
            name: float(np.mean(questions.values(texts))) for name, texts in guesses.items()
        }
    return floors


def train_cell(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Trains and evaluates a model, or goes on where this was interrupted.

    Args:
        config (`dict`): as the plan of the study has it.
        folder (`Path`): of the job; the model goes to `model` in it, its answers to `predictions`.
        output (`Path`): folder of the study.

    Returns:
        `dict`: `training`, `tasks` (see [`evaluate_cell`]) and `attention` (see [`measure_attention`]).
    """
    places = scene_folders(output)
    recipe = merge(
        fill_in(config["protocol"], places),
        {
            "model": {
                "vision": encoder_model(output, config["encoder"]),
                "config": {"vision_feature_layer": config["feature_layer"]},
            },
            "data": {"seed": config["seed"]},
            "training": {
                "output_dir": str(folder / MODEL),
                "seed": config["seed"],
                "feature_cache_dir": str(output / "features"),
            },
        },
    )
    trained = run_recipe(recipe_from_dict(recipe))
    model, processor = _load(folder / MODEL, config["evaluation"].get("dtype", "auto"))
    return {
        "training": {name: trained[name] for name in _KEPT_OF_TRAINING if name in trained},
        "tasks": evaluate_cell(model, processor, config["evaluation"], places["test"], folder),
        "attention": measure_attention(model, processor, config["attention"], Path(places["test"]), folder),
    }


def _load(folder: Path, dtype: str) -> tuple[Any, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    extra = {"attn_implementation": "eager"} if device == "cpu" else {}
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, **extra).to(device).eval()
    return model, AutoProcessor.from_pretrained(folder)


def _questions(evaluation: Mapping[str, Any], scenes: str) -> dict[str, TaskQuestions]:
    seed, mode = evaluation.get("seed", 0), evaluation.get("mode", "strict")
    return {
        task: load_task(task, Path(scenes), (options or {}).get("num_questions"), seed, mode)
        for task, options in evaluation["tasks"].items()
    }


def evaluate_cell(
    model: Any, processor: Any, evaluation: Mapping[str, Any], scenes: str, folder: Path
) -> dict[str, Any]:
    """
    Asks a model the questions of all tasks, about the scenes and about one another's scenes.

    Args:
        model, processor: trained.
        evaluation (`dict`): of the study.
        scenes (`str`): folder of the test scenes.
        folder (`Path`): of the job. Answers go to `predictions` in it, and what lies there is not asked again.

    Returns:
        `dict`: for each task `score` (percent, of captions CIDEr), `shuffled` (the score with other scenes), further
        accuracies such as that in the other mode, `num_questions`, `num_unanswered`, and of each question `values` and
        `images`.
    """
    measured: dict[str, Any] = {}
    for task, questions in _questions(evaluation, scenes).items():
        fewer = questions.some(evaluation.get("num_shuffled"), evaluation.get("seed", 0))
        answers = {
            images: _answers(model, processor, asked, evaluation, images, folder / "predictions")
            for images, asked in (("given", questions), ("shuffled", fewer))
        }
        values = questions.values(answers["given"])
        measured[task] = {
            "score": float(np.mean(values)),
            "shuffled": float(np.mean(fewer.values(answers["shuffled"]))),
            "num_questions": len(values),
            "num_shuffled": len(fewer.examples),
            "num_unanswered": questions.num_unanswered(answers["given"]),
            "values": [round(value, 4) for value in values],
            "images": questions.images,
            **{name: float(np.mean(questions.values(answers["given"], name))) for name in questions.other_metrics},
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


def measure_attention(
    model: Any, processor: Any, options: Mapping[str, Any], scenes: Path, folder: Path
) -> dict[str, Any]:
    """
    Looks at what the queries of a model's resampler look at (GVT, Figure 3), and keeps the maps that are drawn.

    Args:
        model, processor: trained.
        options (`dict`): `attention` of the study.
        scenes (`Path`): folder of the test scenes.
        folder (`Path`): of the job. The maps of the first scenes go to `attention.npz` in it.

    Returns:
        `dict`: of each scene the numbers of [`attention_numbers`], and `images`, its id.
    """
    images = json.loads((scenes / "instances.json").read_text(encoding="utf-8"))["images"]
    images = images[: options.get("num_scenes", 32)]
    ids = [image["id"] for image in images]
    maps: list[np.ndarray] = []
    grids: list[np.ndarray] = []
    shown: list[np.ndarray] = []
    for image, mask in zip(images, scene_masks(scenes, ids)):
        source = scenes / "images" / Path(image["file_name"]).name
        maps.append(query_attention(model, processor, source, options.get("layer", -1)))
        grids.append(mask_on_grid(_seen_mask(processor, mask), maps[-1].shape[-2:]))
        if len(shown) < options.get("shown", 3):
            shown.append(np.asarray(seen_image(model, processor, load_image(source))))
    kept: list[Any] = [maps[: len(shown)], shown, grids[: len(shown)]]
    with open(folder / ATTENTION, "wb") as file:
        np.savez_compressed(file, maps=np.stack(kept[0]), pixels=np.stack(kept[1]), masks=np.stack(kept[2]))
    return {**attention_numbers(maps, grids), "images": ids}


def _seen_mask(processor: Any, mask: np.ndarray) -> np.ndarray:
    """A mask as the model sees it: the image processor does to it what it does to the pixels of the image."""
    white = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    plain = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    seen = processor.image_processor(images=[white], **plain)["pixel_values"][0]
    return np.asarray(seen[0], dtype=np.float64) / 255


KINDS = {"scenes": make_scenes, "floors": make_floors, "encoder": make_encoder, "cell": train_cell}
"""What does the jobs of each kind."""

__all__ = ["ATTENTION", "KINDS", "evaluate_cell", "make_floors", "make_scenes", "measure_attention", "train_cell"]
