"""Learning rates of their own for parts of a model, such as a low one for a tower that was pretrained."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from ..modeling.trainable_parts import parameters_to_train


def check_learning_rates(learning_rates: Mapping[str, float], trainable: Mapping[str, str]) -> None:
    """
    Makes sure that what gets a learning rate is trained.

    Args:
        learning_rates (`dict[str, float]`): by part.
        trainable (`dict[str, str]`): for each part `"frozen"`, `"full"` or `"lora"`.

    Raises:
        ValueError: if a rate is no positive number, or its part is frozen.
    """
    for part, rate in learning_rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not rate > 0:
            raise ValueError(f"learning_rates.{part} is {rate!r}, expected a number greater than 0.")
        if trainable.get(part, "frozen") == "frozen":
            raise ValueError(
                f"learning_rates has a rate for {part}, which is frozen: leave it out, or set {part} to 'full' or "
                "'lora' in trainable."
            )


def set_part_learning_rates(
    optimizer: torch.optim.Optimizer,
    model: PreTrainedModel,
    learning_rates: Mapping[str, float],
    trainable: Mapping[str, str],
) -> None:
    """
    Moves the parameters of parts into groups of their own, which differ from those they were in by the rate alone.
    Groups without a rate of their own stay first, so that the rate that is logged is that of all other parts.

    Args:
        optimizer (`torch.optim.Optimizer`): new; no scheduler was made of it yet. Changed in place.
        model (`PreTrainedModel`): a composed model of vistok.
        learning_rates (`dict[str, float]`): by part; see [`check_learning_rates`].
        trainable (`dict[str, str]`): as in [`set_trainable`].

    Raises:
        ValueError: if the optimizer trains no parameter of a part that has a rate.
    """
    for part, rate in learning_rates.items():
        of_part = {id(parameter) for parameter in parameters_to_train(model, part, trainable[part]).values()}
        moved = []
        for group in optimizer.param_groups:
            own = [parameter for parameter in group["params"] if id(parameter) in of_part]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_part]
                moved.append({**group, "params": own, "lr": rate})
        if not moved:
            raise ValueError(f"learning_rates has a rate for {part}, of which the optimizer trains no parameter.")
        optimizer.param_groups += moved


__all__ = ["check_learning_rates", "set_part_learning_rates"]
