"""The vision towers that a study compares: pretrained, random, supervised by classes, and distilled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, TrainingArguments, set_seed

from ..evaluation.study_tasks import class_labels
from ..modeling.base_weights import resolve_checkpoint
from ..modeling.distillation_students import random_student
from .class_supervision import ClassSupervisionTrainer, class_dataset, class_supervised_model
from .distillation_collator import at_size
from .final_folder import replacing_files
from .loss_curve import mean_training_loss
from .recipe import recipe_from_dict
from .run_recipe import run_recipe
from .study_jobs import RESULTS, read_json
from .study_plan import SCENES, encoder_job
from .study_recipe import fill_in, merge

MODEL = "model"
"""Folder of a job that holds what it trained."""


def scene_folders(output: Path) -> dict[str, str]:
    """The folders of the scenes, by split."""
    return {name.rpartition("/")[2]: str((output / name / "data").absolute()) for name in SCENES}


def encoder_model(output: Path, name: str) -> str:
    """
    Where a finished encoder is: a folder, or the name of a model.

    Args:
        output (`Path`): folder of the study.
        name (`str`): of the encoder.
    """
    made = read_json(output / encoder_job(name) / RESULTS)["results"]
    return made.get("model") or str((output / encoder_job(name) / MODEL).absolute())


def make_encoder(config: Mapping[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    """
    Makes an encoder, or goes on where this was interrupted.

    Args:
        config (`dict`): as the plan of the study has it.
        folder (`Path`): of the job; the tower goes to `model` in it.
        output (`Path`): folder of the study.

    Returns:
        `dict`: what is known of it: `model` if it is one that there was before, and measures of its training.
    """
    return _HOW[config["how"]](config, folder, output)


def _pretrained(config, folder: Path, output: Path) -> dict[str, Any]:
    AutoConfig.from_pretrained(resolve_checkpoint(config["model"]))  # not found out about in each of its cells
    return {"model": config["model"]}


def _random(config, folder: Path, output: Path) -> dict[str, Any]:
    path = resolve_checkpoint(config["architecture"])
    tower = random_student(AutoConfig.from_pretrained(path), config.get("image_size"), config.get("seed", 0))
    with replacing_files(folder / MODEL) as temporary:
        tower.save_pretrained(temporary)
        AutoImageProcessor.from_pretrained(path).save_pretrained(temporary)
    return {}


def _supervised(config, folder: Path, output: Path) -> dict[str, Any]:
    places, supervision, seed = scene_folders(output), config["supervision"], config.get("seed", 0)
    path = resolve_checkpoint(config["architecture"])
    classes, files, labels = class_labels(Path(places["train"]))
    test_classes, test_files, test_labels = class_labels(Path(places["test"]))
    if classes != test_classes:
        raise ValueError(f"Training and test scenes are of other classes: {classes} and {test_classes}.")
    image_size = supervision.get("image_size")
    processor = AutoImageProcessor.from_pretrained(path)
    processor = processor if image_size is None else at_size(processor, image_size)
    # transformers takes bf16 for that of a GPU unless it is told that there is none.
    settings = {
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        **fill_in(supervision.get("training") or {}, places),
        "disable_tqdm": True,
    }
    args = TrainingArguments(**{**settings, "output_dir": str(folder / "run"), "seed": seed, "data_seed": seed})
    set_seed(seed)
    trainer = ClassSupervisionTrainer(
        class_supervised_model(AutoConfig.from_pretrained(path), classes, image_size, seed),
        args,
        class_dataset(files, labels),
        class_dataset(test_files, test_labels),
        processor,
    )
    trained = trainer.train(resume_from_checkpoint="auto")
    measured = trainer.evaluate()
    trainer.save_final(folder / MODEL)
    return {
        "steps": trainer.state.global_step,
        "train_loss": mean_training_loss(trainer.state.log_history, trained.training_loss),
        "mean_average_precision": measured["eval_mean_average_precision"],
        "log_history": trainer.state.log_history,
    }


def _distilled(config, folder: Path, output: Path) -> dict[str, Any]:
    recipe = merge(
        fill_in(config["distillation"], scene_folders(output)),
        {
            "trainer": "feature-distillation",
            "teacher": {"model": encoder_model(output, config["teacher"]), "feature_layer": config["teacher_layer"]},
            "training": {
                "output_dir": str(folder / MODEL),
                "mask_ratio": config.get("mask_ratio", 0.0),
                "seed": config.get("seed", 0),
                "disable_tqdm": True,
            },
        },
    )
    results = run_recipe(recipe_from_dict(recipe))
    kept = ("steps", "train_loss", "metrics", "representation", "parameters", "log_history")
    return {name: results[name] for name in kept if name in results}


_HOW = {"pretrained": _pretrained, "random": _random, "supervised": _supervised, "distilled": _distilled}

__all__ = ["MODEL", "encoder_model", "make_encoder", "scene_folders"]
