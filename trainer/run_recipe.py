"""Running a recipe: from base models and data to a trained folder with card, results and loss curve."""

import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from transformers import set_seed
from transformers.utils import logging

from ..configuration.optional import require
from ..hub_cards.card import write_card
from ..hub_cards.run_results import merge_results, read_results, run_environment, write_text_atomically
from ..modeling.modeling_gvt import GVTForConditionalGeneration
from ..processing.chat_templates import get_chat_template
from ..processing.processing_gvt import GVTProcessor
from .checkpoints import check_checkpoint, checkpoint_to_resume
from .data_sources import DataSource, SkippedSamples, load_data_source, mix_data_sources
from .freezing import count_parameters
from .recipe import ModelRecipe, Recipe
from .training_record import TrainingRecord, check_same_recipe, seconds_trained
from .visual_language_config import VisualLanguageConfig
from .visual_language_trainer import VisualLanguageTrainer

logger = logging.get_logger(__name__)

LOG_NAME = "training_log.jsonl"
KINDS = {"gvt": (GVTForConditionalGeneration, GVTProcessor)}


def build_model(recipe: ModelRecipe) -> tuple[Any, Any]:
    """
    Composes the model of a recipe and its processor, or loads both from its checkpoint.

    Args:
        recipe ([`ModelRecipe`]): what to compose.

    Returns:
        The model and its processor.

    Raises:
        ValueError: if the kind or the dtype is unknown, or the checkpoint is another model than the recipe describes.
    """
    if recipe.kind not in KINDS:
        raise ValueError(f"{recipe.kind!r} is no kind of model: choose {', '.join(KINDS)}.")
    dtype = getattr(torch, recipe.dtype, None) if recipe.dtype else None
    if recipe.dtype and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype of the model is {recipe.dtype!r}, expected one such as 'bfloat16' or 'float32'.")
    if recipe.checkpoint is not None or recipe.vision is None or recipe.text is None:  # without one, both are set
        return _load_checkpoint(recipe, dtype)
    model_class, processor_class = KINDS[recipe.kind]
    model = model_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        dtype=dtype,
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


def _load_checkpoint(recipe: ModelRecipe, dtype: torch.dtype | None) -> tuple[Any, Any]:
    model_class, processor_class = KINDS[recipe.kind]
    options = {"dtype": dtype, "attn_implementation": recipe.attn_implementation}
    model = model_class.from_pretrained(
        recipe.checkpoint, **{name: value for name, value in options.items() if value is not None}
    )
    parts = {"config": (recipe.config, model.config), "resampler": (recipe.resampler, model.config.resampler_config)}
    for section, (fields, config) in parts.items():
        for name, value in fields.items():
            found = getattr(config, name, None)
            if found != value:
                raise _is_otherwise(recipe, f"{section}.{name}", value, found)
    for part in ("vision", "text"):
        value, found = getattr(recipe, part), (model.config.base_models or {}).get(part)
        if value is not None and (found is None or os.path.realpath(found) != os.path.realpath(value)):
            raise _is_otherwise(recipe, part, value, found)
    processor = processor_class.from_pretrained(recipe.checkpoint, **recipe.processor)
    if recipe.chat_template is not None:
        processor.chat_template = get_chat_template(recipe.chat_template, processor.image_token)
    if recipe.image_size is not None:
        processor.image_processor.size = {"height": recipe.image_size, "width": recipe.image_size}
    return model, processor


def _is_otherwise(recipe: ModelRecipe, name: str, value: Any, found: Any) -> ValueError:
    return ValueError(
        f"model.{name} is {value!r}, but {recipe.checkpoint} has {found!r}: leave it out of the recipe, or start from "
        "the base models."
    )


def run_recipe(recipe: Recipe, resume: bool | str = "auto", command: str | None = None) -> dict[str, Any]:
    """
    Trains as a recipe says. The output folder then holds the model, as [`VisualLanguageTrainer.save_final`] saves it,
    a card, `results.json`, `loss.png` and the log of the training, `training_log.jsonl`. A run that is at its end
    already takes no step, and its folder stays as it is.

    Args:
        recipe ([`Recipe`]): the run.
        resume (`bool` or `str`, *optional*, defaults to `"auto"`):
            `"auto"` continues from the last complete checkpoint in the output folder if there is one; a path continues
            from that one; `False` starts anew. A run continues with the recipe that it began with, save for its length
            and for what it saves, evaluates and logs on the way.
        command (`str`, *optional*): the command line, for the card.

    Returns:
        `dict`: the results, as in the `results.json` that is written beside the model.

    Raises:
        ImportError: if what draws the loss curve is missing.
        ValueError: if the recipe does not fit together, or is another than that of the run to continue.
    """
    require("matplotlib.figure", "train")  # not found out about at the end of a run
    args = VisualLanguageConfig(**{"trainable": recipe.trainable, "lora": recipe.lora, **recipe.training})
    checkpoint = checkpoint_to_resume(resume, args.output_dir)
    if checkpoint is not None:
        check_same_recipe(checkpoint, recipe.to_dict())
    set_seed(args.seed)
    model, processor = build_model(recipe.model)
    train_dataset = mix_data_sources(recipe.data.train, recipe.data.seed, recipe.data.stopping_strategy)
    eval_datasets = load_eval_datasets(recipe.data.eval)
    trainer = VisualLanguageTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets or None,
        processing_class=processor,
        callbacks=[TrainingRecord(recipe.to_dict())],
    )
    steps_before = check_checkpoint(checkpoint).global_step if checkpoint is not None else 0
    output = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == steps_before and (recorded := results_of_run(args.output_dir, trainer)):
        logger.warning(
            f"{args.output_dir} holds this run at its end: there was no step left to take, and the folder stays as it "
            "is. To train once more, start with --resume never (resume=False)."
        )
        return recorded
    metrics = final_metrics(trainer, eval_datasets)
    skipped = SkippedSamples([dataset.skipped_samples for dataset in (train_dataset, *eval_datasets.values())])
    if skipped.count:
        logger.warning(skipped.summary())
    history = trainer.state.log_history
    described = recipe.to_dict()
    described["model"] |= model.config.base_models or {}
    results = {
        "command": command,
        "recipe": described,
        "steps": trainer.state.global_step,
        "epochs": None if isinstance(train_dataset, IterableDataset) else trainer.state.epoch,
        "train_loss": mean_training_loss(history, output.training_loss),
        "train_seconds": round(seconds_trained(trainer.state), 1),
        "environment": run_environment(),
        "parameters": count_parameters(model),
        "metrics": metrics,
        "skipped_samples": skipped.count,
        "card": recipe.card,
        "log_history": history,
    }
    return _save_run(trainer, results) if trainer.is_world_process_zero() else results


def _save_run(trainer: VisualLanguageTrainer, results: dict[str, Any]) -> dict[str, Any]:
    folder, history = Path(str(trainer.args.output_dir)), results["log_history"]
    trainer.save_final(folder)
    results = merge_results(folder, results)
    write_text_atomically(folder / LOG_NAME, "".join(json.dumps(entry) + "\n" for entry in history))
    draw_loss_curve(history, folder / "loss.png")
    write_card(folder, results)
    return results


def results_of_run(folder: str | os.PathLike, trainer: VisualLanguageTrainer) -> dict[str, Any] | None:
    """
    The results that stand beside a model, if they are those of the run that a trainer is at the end of.

    Args:
        folder (`str`): output folder of the run.
        trainer ([`VisualLanguageTrainer`]): after training.

    Returns:
        `dict`: as in `results.json`, or `None` if this run, as far as it has come, was not recorded or not saved.
    """
    results, state = read_results(folder), trainer.state
    same_curve = _series(results.get("log_history") or [], "loss") == _series(state.log_history, "loss")
    saved = any(Path(folder).glob("*.safetensors"))
    return results if results.get("steps") == state.global_step and same_curve and saved else None


def load_eval_datasets(sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Loads the data to evaluate on, by the names of its sources."""
    described = [DataSource.from_dict(source) for source in sources]
    return {str(source.name): load_data_source(source) for source in described}


def final_metrics(trainer: VisualLanguageTrainer, eval_datasets: dict[str, Any]) -> dict[str, float]:
    """The metrics of the trained model: those of the evaluation in its last step, or else of one more."""
    measured: dict[str, float] = {}
    for entry in trainer.state.log_history:
        if entry["step"] == trainer.state.global_step and not trainer.args.load_best_model_at_end:
            measured |= {name: value for name, value in entry.items() if name.startswith("eval_")}
    if all(f"eval_{name}_answer_accuracy" in measured for name in eval_datasets):
        return measured
    return trainer.evaluate()


def mean_training_loss(log_history: list[dict[str, Any]], default: float) -> float:
    """
    The training loss, in nats per answer token, averaged over all steps up to the last that was logged: also those
    before a run was interrupted.

    Args:
        log_history (`list[dict]`): the trainer's `state.log_history`.
        default (`float`): where no loss was logged.
    """
    total, before = 0.0, 0
    for entry in log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else default


def draw_loss_curve(log_history: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """
    Draws training and evaluation loss, and the accuracies measured on the way, over steps.

    Args:
        log_history (`list[dict]`): the trainer's `state.log_history`.
        path (`str`): PNG file.
    """
    figure_module, ticker = require("matplotlib.figure", "train"), require("matplotlib.ticker", "train")
    figure = figure_module.Figure(figsize=(8, 4.5), layout="constrained")
    losses = figure.add_subplot()
    losses.plot(*_series(log_history, "loss"), color="tab:blue", linewidth=0.8, alpha=0.8, label="training loss")
    losses.set_xlabel("step")
    losses.set_ylabel("loss (nats per answer token)")
    losses.set_yscale("log", subs=[])
    losses.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.grid(alpha=0.3)
    measured = [key for key in dict.fromkeys(key for entry in log_history for key in entry) if key.startswith("eval_")]
    for index, key in enumerate(key for key in measured if key.endswith("_loss")):
        label = f"{_source_name(key, '_loss')}: loss"
        losses.plot(*_series(log_history, key), ":", marker="x", markersize=4, color=f"C{index + 1}", label=label)
    accuracy_keys = [key for key in measured if key.endswith("_answer_accuracy")]
    if accuracy_keys:
        accuracies = losses.twinx()
        accuracies.set_ylabel("answers right (%)")
        accuracies.set_ylim(0, 101)
    for index, key in enumerate(accuracy_keys):
        label = f"{_source_name(key, '_answer_accuracy')}: answers right"
        steps, shares = _series(log_history, key)
        percent = [100 * share for share in shares]
        accuracies.plot(steps, percent, marker="o", markersize=3, color=f"C{index + 1}", label=label)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    temporary = Path(path).with_suffix(".part")
    temporary.write_bytes(drawn.getvalue())
    os.replace(temporary, path)


def _series(log_history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    entries = [entry for entry in log_history if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _source_name(key: str, suffix: str) -> str:
    return key.removeprefix("eval").removesuffix(suffix).strip("_") or "evaluation"


__all__ = ["build_model", "draw_loss_curve", "load_eval_datasets", "mean_training_loss", "run_recipe"]
