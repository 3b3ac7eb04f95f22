"""The share of Setokim that chooses the visual tokens which it writes among real ones."""

from typing import Any

import torch
from torch import nn

from .token_bank import TokenBank
from .visual_tokenizer import computing_dtype


class ChoosesTokens:
    """A model with a head that may have a [`TokenBank`], as `config.token_bank_size` says."""

    config: Any
    model: Any
    output_projection: nn.Linear
    token_bank: Any
    _know_as_added: Any

    def _new_bank(self, num_tokens: int) -> TokenBank:
        text_config: Any = self.config.text_config
        return TokenBank(num_tokens, self.model.visual_tokenizer.output_size, text_config.hidden_size)

    def add_token_bank(self, num_tokens: int) -> None:
        """
        Adds an empty [`TokenBank`]; a model that has one of that size stays as it is.

        Args:
            num_tokens (`int`): of the bank.

        Raises:
            ValueError: if there is a bank of another size.
        """
        if self.token_bank is not None and len(self.token_bank.tokens) != num_tokens:
            raise ValueError(
                f"The model has a bank of {len(self.token_bank.tokens)} tokens already, not of {num_tokens}: give "
                "token_bank_size that number, or leave it out."
            )
        if self.token_bank is not None:
            return
        self.config.token_bank_size = num_tokens
        dtype = computing_dtype(self.output_projection)
        self.token_bank = self._new_bank(num_tokens).to(self.output_projection.weight.device, dtype)
        self._know_as_added({f"token_bank.{name}" for name, _ in self.token_bank.named_parameters()})

    def _choice_losses(self, states, placeholders, written, image_features) -> torch.Tensor:
        """What [`TokenBank.losses`] are of the tokens that are written."""
        # Where nothing is written the bank is asked all the same, and in the same order: processes of a group add up
        # gradients in the order in which they come, and wait for those of all weights.
        bank: Any = self.token_bank
        device = states.device
        if image_features is None or image_features.tokens is None:  # of rows that write nothing
            tokens, rows = states.new_zeros(0, bank.tokens.shape[-1]), written.new_zeros(0, dtype=torch.long)
            return bank.losses(states, rows, tokens, rows, rows)
        real, rows = image_features.token_mask.flatten().to(device), placeholders.to(device).nonzero()[:, 0]
        numbers = real.cumsum(0) - 1
        return bank.losses(
            states,
            written.nonzero()[:, 0],
            image_features.tokens.flatten(0, 1).to(device)[real],
            rows[real],
            numbers[written[placeholders.to(device)]],
        )


__all__ = ["ChoosesTokens"]
