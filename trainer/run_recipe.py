"""Running a recipe: from base models and data to a trained folder with card, results and loss curve."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ..configuration.optional import require
from ..modeling.modeling_gvt import GVTForConditionalGeneration
from ..processing.processing_gvt import GVTProcessor
from .data_sources import load_data_source, mix_data_sources
from .freezing import count_parameters
from .recipe import ModelRecipe, Recipe
from .visual_language_config import VisualLanguageConfig
from .visual_language_trainer import VisualLanguageTrainer

logger = logging.get_logger(__name__)

KINDS = {"gvt": (GVTForConditionalGeneration, GVTProcessor)}


def build_model(recipe: ModelRecipe) -> tuple[Any, Any]:
    """
    Composes the model of a recipe and its processor, or loads both from its checkpoint.

    Args:
        recipe ([`ModelRecipe`]): what to compose.

    Returns:
        The model and its processor.

    Raises:
        ValueError: if the kind is unknown.
    """
    if recipe.kind not in KINDS:
        raise ValueError(f"{recipe.kind!r} is no kind of model: choose {', '.join(KINDS)}.")
    model_class, processor_class = KINDS[recipe.kind]
    if recipe.checkpoint is not None:
        return model_class.from_pretrained(recipe.checkpoint), processor_class.from_pretrained(recipe.checkpoint)
    model = model_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        dtype=getattr(torch, recipe.dtype) if recipe.dtype else None,
        attn_implementation=recipe.attn_implementation,
        **recipe.config,
        resampler_config=recipe.resampler,
    )
    processor = processor_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        image_size=recipe.image_size,
        num_image_tokens=model.model.resampler.max_num_tokens,
        chat_template=recipe.chat_template,
        **recipe.processor,
    )
    return model, processor


def run_recipe(recipe: Recipe, resume: bool | str = "auto", command: str | None = None) -> dict[str, Any]:
    """
    Trains as a recipe says.

    Args:
        recipe ([`Recipe`]): the run.
        resume (`bool` or `str`, *optional*, defaults to `"auto"`):
            `"auto"` continues from the last checkpoint in the output folder if there is one; a path continues from
            that one; `False` starts anew.
        command (`str`, *optional*): the command line, for the card.

    Returns:
        `dict`: the results, as in the `results.json` that is written beside the model.
    """
    from ..hub_cards.card import write_card  # the end of a run, not needed to start it

    args = VisualLanguageConfig(**{"trainable": recipe.trainable, "lora": recipe.lora, **recipe.training})
    set_seed(args.seed)
    model, processor = build_model(recipe.model)
    train_dataset = mix_data_sources(recipe.data.train, recipe.data.seed, recipe.data.stopping_strategy)
    eval_datasets = {dataset["name"]: load_data_source(dataset) for dataset in recipe.data.eval}
    trainer = VisualLanguageTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets or None,
        processing_class=processor,
    )
    checkpoint = (
        get_last_checkpoint(args.output_dir) if resume == "auto" and os.path.isdir(args.output_dir) else resume
    )
    started = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=checkpoint or None)
    metrics = trainer.evaluate() if eval_datasets else {}
    results = {
        "command": command,
        "recipe": recipe.to_dict(),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": output.training_loss,
        "train_seconds": round(time.perf_counter() - started, 1),
        "parameters": count_parameters(model),
        "metrics": metrics,
        "skipped_samples": train_dataset.skipped_samples.count,
        "log_history": trainer.state.log_history,
    }
    if train_dataset.skipped_samples.count:
        logger.warning(train_dataset.skipped_samples.summary())
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        trainer.save_final(folder)
        (folder / "results.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
        draw_loss_curve(trainer.state.log_history, folder / "loss.png")
        write_card(folder, results, **recipe.card)
    return results


def draw_loss_curve(log_history: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Draws training and evaluation loss, and the accuracies measured on the way, over steps.

    Args:
        log_history (`list[dict]`): the trainer's `state.log_history`.
        path (`str`): PNG file.
    """
    figure_module = require("matplotlib.figure", "train")
    figure = figure_module.Figure(figsize=(8, 4.5), layout="constrained")
    losses = figure.add_subplot()
    points = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if points:
        losses.plot(*zip(*points), color="tab:blue", linewidth=0.8, alpha=0.8, label="training loss")
    losses.set_xlabel("step")
    losses.set_ylabel("loss (nats per answer token)")
    losses.set_yscale("log")
    losses.grid(alpha=0.3)
    accuracies = losses.twinx()
    names = sorted({key for entry in log_history for key in entry if key.endswith("_answer_accuracy")})
    for index, key in enumerate(names):
        series = [(entry["step"], 100 * entry[key]) for entry in log_history if key in entry]
        label = key.removeprefix("eval_").removesuffix("_answer_accuracy").strip("_") or "evaluation"
        accuracies.plot(
            *zip(*series), marker="o", markersize=3, color=f"C{index + 1}", label=f"{label}: answers right"
        )
    accuracies.set_ylabel("answers right (%)")
    accuracies.set_ylim(0, 101)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=150)


__all__ = ["build_model", "draw_loss_curve", "run_recipe"]
