"""Publishing what a trainer has trained."""

import dataclasses
from pathlib import Path
from typing import Any

from ..hub_cards.card import write_card
from ..hub_cards.push import Pushed, send
from ..hub_cards.push_plan import check_repo_id, planned_push
from ..hub_cards.run_results import merge_results, read_results, run_environment
from .loss_curve import mean_training_loss


def push_trained(
    trainer: Any,
    commit_message: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    private: bool | None = None,
    self_contained: bool = False,
) -> Pushed | None:
    """
    Saves what was trained as a training ends (`save_final`), writes its card, and publishes the folder.

    Args:
        trainer ([`ReproducibleTrainer`]): its `args.hub_model_id` names the repository.
        commit_message, token, revision, private, self_contained: as of `vistok push`; by default as `args` has them.

    Returns:
        [`Pushed`]; `None` in all but the first process.

    Raises:
        ValueError: if `args.hub_model_id` is no name of the Hub, or something is not fit to be published.
        PushError: if the Hub cannot be reached or refuses.
    """
    args = trainer.args
    if not args.hub_model_id:
        raise ValueError("args.hub_model_id is None: name the repository, owner/name, that is to be pushed to.")
    check_repo_id(args.hub_model_id)
    folder = Path(str(args.output_dir))
    trainer.save_final(str(folder))
    if not trainer.is_world_process_zero():
        return None
    if not read_results(folder):  # a recipe records more of its run
        merge_results(folder, _results(trainer))
    write_card(folder)
    with planned_push(folder, args.hub_model_id, self_contained=self_contained) as plan:
        return send(
            plan,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            message=commit_message or "End of training",
            token=token or args.hub_token or None,
        )


def _results(trainer: Any) -> dict[str, Any]:
    """What a trainer knows of its run."""
    history = trainer.state.log_history
    losses = [entry["train_loss"] for entry in history if "train_loss" in entry]  # where no step was logged
    seconds = [entry["train_runtime"] for entry in history if "train_runtime" in entry]
    parameters = list(trainer.model.parameters())
    recipe: dict[str, Any] = {"training": _chosen(trainer.args)}
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
    }


def _chosen(args: Any) -> dict[str, Any]:
    """The arguments that are not at their defaults, as a recipe would name them."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    return {
        name: value
        for name, value in args.to_dict().items()
        if isinstance(value, str | int | float | bool) and value != defaults.get(name)
    }


__all__ = ["push_trained"]
