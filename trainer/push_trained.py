"""Publishing what a trainer has trained."""

import dataclasses
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..hub_cards.card import write_card
from ..hub_cards.push import Pushed, PushError, send
from ..hub_cards.push_plan import check_repo_id, planned_push
from ..hub_cards.run_results import merge_results, read_results, run_environment
from .loss_curve import mean_training_loss, series

logger = logging.get_logger(__name__)


def check_hub_strategy(args: TrainingArguments) -> None:
    """
    Makes sure that a training publishes nothing but what can be published.

    Args:
        args (`TrainingArguments`): of the training.

    Raises:
        ValueError: if they ask for checkpoints to be pushed.
    """
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy is {HubStrategy(args.hub_strategy).value!r}, and checkpoints to resume from are not "
            "pushed: optimizer states and random numbers are pickled, and whoever loads such files runs them. Choose "
            "'every_save', which pushes the model each time, or 'end'."
        )


def push_while_training(trainer: Any) -> None:
    """
    Publishes the model as it is now, at each save of a training with `push_to_hub` and `hub_strategy="every_save"`. A
    Hub that cannot be reached then costs no training. All processes have to call it.

    Args:
        trainer ([`ReproducibleTrainer`]): that is training.
    """
    if trainer.args.hub_strategy == HubStrategy.END:
        return
    with TemporaryDirectory(prefix="vistok-push-") as temporary:
        folder = Path(temporary) / _repository(trainer).split("/")[-1]
        try:
            push_trained(trainer, f"Training in progress, step {trainer.state.global_step}", folder=folder)
        except PushError as error:
            logger.warning(f"{error} Training goes on, and pushes again at the next save.")


def push_trained(
    trainer: Any,
    commit_message: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    private: bool | None = None,
    self_contained: bool = False,
    folder: Path | None = None,
) -> Pushed | None:
    """
    Saves what was trained as a training ends (`save_final`), writes its card, and publishes the folder. All processes
    have to call it.

    Args:
        trainer ([`ReproducibleTrainer`]): its `args.hub_model_id` names the repository.
        commit_message, token, revision, private, self_contained: as of `vistok push`; by default as `args` has them.
        folder (`Path`, *optional*): where it is saved; by default `args.output_dir`.

    Returns:
        [`Pushed`]; `None` in all but the first process.

    Raises:
        ValueError: if `args.hub_model_id` is no name of the Hub, or something is not fit to be published.
        PushError: if the Hub cannot be reached or refuses.
    """
    args = trainer.args
    repo_id = _repository(trainer)
    folder = Path(str(args.output_dir)) if folder is None else folder
    trainer.save_final(str(folder))
    if not trainer.is_world_process_zero():
        return None
    if not _keeps_results(folder, trainer):
        merge_results(folder, _results(trainer))
    write_card(folder)
    token = token or args.hub_token or None
    with planned_push(folder, repo_id, self_contained=self_contained, token=token) as plan:
        return send(
            plan,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            message=commit_message or "End of training",
            token=token,
        )


def results_of_run(folder: str | os.PathLike, trainer: Any) -> dict[str, Any] | None:
    """
    The results that stand beside a model, if they are those of the run that a trainer is at the end of.

    Args:
        folder (`str`): output folder of the run.
        trainer ([`ReproducibleTrainer`]): after training.

    Returns:
        `dict`: as in `results.json`, or `None` if this run, as far as it has come, was not recorded or not saved.
    """
    results, state = read_results(folder), trainer.state
    same_curve = series(results.get("log_history") or [], "loss") == series(state.log_history, "loss")
    saved = any(Path(folder).glob("*.safetensors"))
    return results if results.get("steps") == state.global_step and same_curve and saved else None


def _keeps_results(folder: Path, trainer: Any) -> bool:
    """Whether there are results of this run, of which a recipe records more, or of any if nothing was trained now."""
    if trainer.state.global_step == 0:
        return bool(read_results(folder))
    return results_of_run(folder, trainer) is not None


def _repository(trainer: Any) -> str:
    args = trainer.args
    name = getattr(trainer, "hub_model_id", None) or args.hub_model_id
    if args.push_to_hub:  # Trainer has made the repository, and its first process knows its full name
        return name or Path(str(args.output_dir)).absolute().name
    if not name:
        raise ValueError("args.hub_model_id is None: name the repository, owner/name, that is to be pushed to.")
    check_repo_id(name)
    return name


def _results(trainer: Any) -> dict[str, Any]:
    """What a trainer knows of its run."""
    history = trainer.state.log_history
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]  # where no step was logged
    seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    parameters = list(trainer.model.parameters())
    recipe: dict[str, Any] = {"training": _chosen(trainer.args)}
    if base_models := getattr(getattr(trainer.model, "config", None), "base_models", None):
        recipe["model"] = dict(base_models)
    if trainer.card_kind:
        recipe["trainer"] = trainer.card_kind
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": mean_training_loss(history, losses[-1]) if losses else None,
        "train_seconds": seconds[-1] if seconds else None,
        "environment": run_environment(),
        "parameters": {
            "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "all": sum(parameter.numel() for parameter in parameters),
        },
        "metrics": {name: value for entry in history for name, value in entry.items() if name.startswith("eval_")},
        "recipe": recipe,
        "log_history": history,
        **trainer.run_record,
    }


def _chosen(args: Any) -> dict[str, Any]:
    """The arguments that are not at their defaults, as a recipe would name them."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    return {
        name: value
        for name, value in args.to_dict().items()
        if isinstance(value, str | int | float | bool) and value != defaults.get(name)
    }


__all__ = ["check_hub_strategy", "push_trained", "push_while_training", "results_of_run"]
