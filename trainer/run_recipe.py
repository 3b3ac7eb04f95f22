"""Running a recipe: from models and data to a trained folder with card, results and loss curve."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from transformers import set_seed
from transformers.utils import logging

from ..configuration.optional import require
from ..hub_cards.card import write_card
from ..hub_cards.card_lineage import EARLIER, made_of_earlier
from ..hub_cards.published_text import published_values
from ..hub_cards.run_results import merge_results, run_environment, write_text_atomically
from .checkpoints import check_checkpoint, checkpoint_to_resume
from .data_sources import SkippedSamples
from .loss_curve import draw_loss_curve, mean_training_loss
from .push_trained import results_of_run
from .recipe_sections import PreparedRun, Recipe
from .reproducible_trainer import ReproducibleTrainer
from .run_lineage import STARTED_FROM, described_run, start_of
from .training_record import TrainingRecord, check_same_recipe, seconds_trained

logger = logging.get_logger(__name__)

LOG_NAME = "training_log.jsonl"


def run_recipe(recipe: Recipe, resume: bool | str = "auto", command: str | None = None) -> dict[str, Any]:
    """
    Trains as a recipe says. The output folder then holds the model, as the `save_final` of its trainer saves it,
    a card, `results.json`, `loss.png` and the log of the training, `training_log.jsonl`. A run that is at its end
    already takes no step, and its folder stays as it is, unless something else is to be measured of the model.

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
    args = recipe.arguments()
    checkpoint = checkpoint_to_resume(resume, args.output_dir)
    whole_run, earlier = described_run(recipe), made_of_earlier(start_of(recipe))
    if checkpoint is not None:
        check_same_recipe(checkpoint, whole_run)
    set_seed(args.seed)
    run = recipe.prepare(args)
    trainer = run.trainer
    trainer.add_callback(TrainingRecord(whole_run))
    described = recipe.to_dict()
    if run.base_models:
        described["model"] |= run.base_models
    trainer.run_record = {
        "command": command,
        "recipe": described,
        STARTED_FROM: whole_run.get(STARTED_FROM),
        EARLIER: earlier,
        "card": recipe.card,
    }
    steps_before = check_checkpoint(checkpoint).global_step if checkpoint is not None else 0
    output = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step == steps_before and (recorded := results_of_run(args.output_dir, trainer)):
        if not _is_measured(run, recipe, recorded):
            return _measured(run, {**recorded, "recipe": described})
        logger.warning(
            f"{args.output_dir} holds this run at its end: there was no step left to take, and the folder stays as it "
            "is. To train once more, start with --resume never (resume=False)."
        )
        return recorded
    trainer.save_final(str(args.output_dir))  # nothing that comes next may cost the model
    metrics = final_metrics(trainer, run.eval_datasets)
    skipped = SkippedSamples([dataset.skipped_samples for dataset in (run.train_dataset, *run.eval_datasets.values())])
    if skipped.count:
        logger.warning(skipped.summary())
    history = trainer.state.log_history
    results = {
        **trainer.run_record,
        "steps": trainer.state.global_step,
        "epochs": None if isinstance(run.train_dataset, IterableDataset) else trainer.state.epoch,
        **_sizes(run),
        "train_loss": mean_training_loss(history, output.training_loss),
        "train_seconds": round(seconds_trained(trainer.state), 1),
        "environment": run_environment(),
        "parameters": run.count_parameters(),
        "metrics": metrics,
        "skipped_samples": skipped.count,
        "log_history": history,
    }
    if trainer.is_world_process_zero():
        results = _measured(run, _recorded(run, results))
    if args.push_to_hub:
        _push(trainer)
    return results


def _push(trainer: ReproducibleTrainer) -> None:
    folder = trainer.args.output_dir
    try:
        trainer.push_to_hub()
    except Exception:
        logger.error(
            f"The model is trained and saved in {folder}, but it was not published: see the error. A run that is at "
            f"its end is not pushed again: `vistok push {folder} {trainer.hub_model_id}` does it."
        )
        raise


def _sizes(run: PreparedRun) -> dict[str, int]:
    """How many examples there are, and rows that these share, if they were counted."""
    datasets = {"examples": run.train_dataset, "rows": run.trainer.train_dataset}
    return {name: len(data) for name, data in datasets.items() if not isinstance(data, IterableDataset)}


def _recorded(run: PreparedRun, results: dict[str, Any]) -> dict[str, Any]:
    """The results, written beside the model with its log, its curve and its card."""
    folder, history = Path(str(run.trainer.args.output_dir)), results["log_history"]
    results = merge_results(folder, results)
    write_text_atomically(folder / LOG_NAME, "".join(json.dumps(entry) + "\n" for entry in history))
    draw_loss_curve(history, folder / "loss.png", run.curve)
    write_card(folder, results)
    return results


def _measured(run: PreparedRun, results: dict[str, Any]) -> dict[str, Any]:
    """The results and what is measured of the saved model, written beside it likewise."""
    if not run.measures or not run.trainer.is_world_process_zero():
        return results
    folder = Path(str(run.trainer.args.output_dir))
    try:
        measured = {name: measure() for name, measure in run.measures.items()}
    except Exception:
        logger.error(
            f"The model is trained and saved in {folder}, but what it was to be measured on cannot be used: see the "
            "error. Correct the recipe or the data and start it again: a run that is at its end is only measured."
        )
        raise
    results = merge_results(folder, {**results, **measured})
    write_card(folder, results)
    return results


def _is_measured(run: PreparedRun, recipe: Recipe, recorded: Mapping[str, Any]) -> bool:
    """Whether results that were recorded hold what the recipe asks for."""
    described = recipe.to_dict()
    asked = published_values({name: described.get(name) for name in recipe.measured_sections})
    before = {name: (recorded.get("recipe") or {}).get(name) for name in recipe.measured_sections}
    return json.loads(json.dumps(asked)) == before and all(name in recorded for name in run.measures)


def final_metrics(trainer: ReproducibleTrainer, eval_datasets: dict[str, Any]) -> dict[str, float]:
    """The metrics of the trained model: those of the evaluation in its last step, or else of one more."""
    measured: dict[str, float] = {}
    for entry in trainer.state.log_history:
        if entry["step"] == trainer.state.global_step and not trainer.args.load_best_model_at_end:
            measured |= {name: value for name, value in entry.items() if name.startswith("eval_")}
    if all(f"eval_{name}_loss" in measured for name in eval_datasets):
        return measured
    return trainer.evaluate()


__all__ = ["run_recipe"]
