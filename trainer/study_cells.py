"""What a study is built on: scenes, what their questions yield without images, and models trained on encoders."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..evaluation.vqa import question_only_prior
from .data_sources import load_data_source
from .recipe import recipe_from_dict
from .run_recipe import run_recipe
from .scene_set import SOURCE_FILE, write_scenes
from .study_encoders import MODEL, encoder_model, make_encoder, scene_folders
from .study_measures import answer_questions, load_questions, measure_attention, probe_tower
from .study_recipe import fill_in, merge

logger = logging.get_logger(__name__)

_KEPT_OF_TRAINING = ("steps", "epochs", "train_loss", "train_seconds", "parameters", "recipe", "log_history")


def make_scenes(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Renders the scenes of a split; those of the test are held against the training's.

    Args:
        config (`dict`): arguments of [`write_scenes`].
        folder (`Path`): of the job; the scenes go to `data` in it.
        output (`Path`): folder of the study.

    Returns:
        `dict`: numbers of `images`, `objects` and `classes`, and of `cutouts` and `backgrounds` that they are made of.
    """
    if not (folder / "data").exists():  # it is there as a whole, or not at all
        for left in folder.glob(".data.*"):  # of a process that was killed outright
            shutil.rmtree(left)
        others = [place for split, place in scene_folders(output).items() if split == "train" != config["split"]]
        write_scenes(folder / "data", apart_from=others, **config)
    document = json.loads((folder / "data" / "instances.json").read_text(encoding="utf-8"))
    counted = {"images": "images", "objects": "annotations", "classes": "categories"}
    source = json.loads((folder / "data" / SOURCE_FILE).read_text(encoding="utf-8"))
    pictures = {name: len(source[name]) for name in ("cutouts", "backgrounds")}
    return {**{name: len(document[key]) for name, key in counted.items()}, **pictures}


def make_floors(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    What the questions yield without any image.

    Args:
        config (`dict`): `evaluation`, and `data` of the training.
        folder, output (`Path`): as in [`make_scenes`].

    Returns:
        `dict`: for each task `num_questions`, `majority` (one constant guess) and `question_only_prior` (the most
        frequent answer in training to exactly this question), in percent, of captions as CIDEr; of each question
        `values` by floor, and `images`.
    """
    places, evaluation = scene_folders(output), config["evaluation"]
    sources = fill_in(config["data"].get("train") or [], places)
    train = [example for source in sources for example in load_data_source(source).select_columns(["messages"])]
    floors = {}
    for task, questions in load_questions(evaluation, places["test"]).items():
        guesses = {
            "majority": questions.majority(),
            "question_only_prior": question_only_prior(train, questions.examples),
        }
        values = {name: questions.values(texts) for name, texts in guesses.items()}
        floors[task] = {
            "num_questions": len(questions.examples),
            "num_images": len(set(questions.images)),
            **{name: float(np.mean(of_floor)) for name, of_floor in values.items()},
            "values": {name: [round(value, 4) for value in of_floor] for name, of_floor in values.items()},
            "images": questions.images,
        }
    return floors


def train_cell(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Trains a model on an encoder, or goes on where this was interrupted.

    Args:
        config (`dict`): as the plan of the study has it.
        folder (`Path`): of the job; the model goes to `model` in it.
        output (`Path`): folder of the study.

    Returns:
        `dict`: what is known of the training.
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
                "disable_tqdm": True,
            },
        },
    )
    trained = run_recipe(recipe_from_dict(recipe))
    return {name: trained[name] for name in _KEPT_OF_TRAINING if name in trained}


KINDS = {
    "scenes": make_scenes,
    "floors": make_floors,
    "encoder": make_encoder,
    "training": train_cell,
    "answers": answer_questions,
    "attention": measure_attention,
    "probe": probe_tower,
}
"""What does the jobs of each kind."""

__all__ = ["KINDS", "make_floors", "make_scenes", "train_cell"]
