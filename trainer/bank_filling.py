"""Real visual tokens for a bank, from the images of training data."""

from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from transformers.utils.logging import tqdm


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


__all__ = ["fill_token_bank"]
