"""Real visual tokens for a bank, from the images of training data."""

from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset, IterableDataset
from transformers.utils.logging import tqdm

from .setokim_config import SetokimTrainingConfig


def has_empty_bank(model: Any, args: SetokimTrainingConfig, train_dataset: Any) -> bool:
    """
    Gives a model the bank that a training asks for.

    Args:
        model ([`SetokimForConditionalGeneration`]): with a bank, as `config.token_bank_size` says, or without.
        args ([`SetokimTrainingConfig`]): says how large a bank it is to get.
        train_dataset (`Dataset` or `IterableDataset`, *optional*): what the bank is filled from.

    Returns:
        `bool`: whether there is a bank, and nothing has filled it.

    Raises:
        ValueError: if the bank has another size, data to fill it from are a stream, or there is a weight of choices
            and no bank.
    """
    if args.token_bank_size:
        model.add_token_bank(args.token_bank_size)
    if model.token_bank is None:
        if args.choice_loss_weight:
            raise ValueError(
                f"choice_loss_weight is {args.choice_loss_weight}, but the model has no bank of tokens to choose "
                "among: give token_bank_size, or leave choice_loss_weight out."
            )
        return False
    is_empty = not model.token_bank.is_filled
    if is_empty and isinstance(train_dataset, IterableDataset):
        raise ValueError("token_bank_size needs data of known size: load train_dataset with streaming off.")
    return is_empty


@torch.no_grad()
def fill_token_bank(
    model: Any, dataset: Dataset, collator: Any, batch_size: int, seed: int, progress_bar: bool = True
) -> None:
    """
    Fills the bank of a model with visual tokens of training images, those that are shown and those that are to be
    written; of rows in an order that `seed` draws, until it is full. All processes of a training do the same, and end
    up with the bank of the first. What torch draws next on the CPU stays what it would have been.

    Args:
        model ([`SetokimForConditionalGeneration`]): on the device that it is trained on; its bank is changed in place.
        dataset (`Dataset`): training rows.
        collator (`Callable`): makes batches of them.
        batch_size (`int`): rows at a time.
        seed (`int`): of the order.
        progress_bar (`bool`, *optional*, defaults to `True`): whether to show one.

    Raises:
        ValueError: if the rows have fewer tokens than the bank has places; names both numbers.
    """
    core, places = model.model, model.token_bank.tokens
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[torch.Tensor] = []
    number, training = 0, model.training
    model.eval()
    with (
        torch.random.fork_rng(devices=[]),  # a collator of one's own may draw
        tqdm(total=len(places), desc="Filling the token bank", unit="tokens", disable=not progress_bar) as bar,
    ):
        for start in range(0, len(order), batch_size):
            if number >= len(places):
                break
            batch = collator([dataset[index] for index in order[start : start + batch_size]])
            images = {name: batch[name].to(core.device) for name in core.image_inputs if name in batch}
            if not images:
                continue
            features = core.get_image_features(**images)
            found.append(features.tokens[features.token_mask].to(places))
            bar.update(min(len(found[-1]), len(places) - number))
            number += len(found[-1])
    model.train(training)
    if number < len(places):
        raise ValueError(
            f"token_bank_size is {len(places)}, but the images of the training data have {number} visual tokens: give "
            "that number or less, or more images."
        )
    model.token_bank.fill(torch.cat(found)[: len(places)])
    places.copy_(broadcast(places.data))


__all__ = ["fill_token_bank", "has_empty_bank"]
