"""Rows of a vocabulary's matrices that are trained while the matrices are not: those of `[Img]` and `[/Img]`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class TokenRows(nn.Module):
    """
    A few rows of the embeddings, or of the head, of a language model as a parameter of their own. The matrix stays as
    it is and may be frozen: what it holds in these rows is not looked at. A tied matrix has one set of rows for both.

    Args:
        token_ids (`list[int]`): which rows.
        width (`int`): of a row.
    """

    def __init__(self, token_ids: Sequence[int], width: int):
        super().__init__()
        self.token_ids = tuple(token_ids)
        self.weight = nn.Parameter(torch.empty(len(self.token_ids), width))

    @torch.no_grad()
    def copy_from(self, matrix: torch.Tensor) -> None:
        """
        Takes over what a matrix has in these rows.

        Args:
            matrix (`torch.FloatTensor` of shape `(vocab_size, width)`): of the vocabulary.
        """
        rows = matrix[list(self.token_ids)]
        self.weight = nn.Parameter(rows.detach().clone(), requires_grad=self.weight.requires_grad)

    def in_matrix(self, matrix: torch.Tensor) -> torch.Tensor:
        """
        A matrix of the vocabulary with these rows in place of its own: a copy, through which they have a gradient.

        Args:
            matrix (`torch.FloatTensor` of shape `(vocab_size, width)`): of the vocabulary.
        """
        return matrix.index_copy(0, self._index(matrix.device), self.weight.to(matrix.device, matrix.dtype))

    def of_embeddings(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """
        What embeddings look up: a forward hook of them.

        Args:
            module (`nn.Embedding`): the embeddings.
            args (`tuple`): token ids.
            output (`torch.FloatTensor` of shape `(..., width)`): what they have without these rows.
        """
        scale = getattr(module, "embed_scale", None)  # Gemma
        for row, token_id in zip(self.weight, self.token_ids):
            row = row.to(output.device, output.dtype) * (1 if scale is None else scale)
            output = torch.where((args[0] == token_id).unsqueeze(-1), row, output)
        return output

    def of_head(self, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """
        What a head scores: a forward hook of it.

        Args:
            module (`nn.Linear`): the head.
            args (`tuple`): states, `(..., width)`.
            output (`torch.FloatTensor` of shape `(..., vocab_size)`): scores without these rows.
        """
        scores = args[0] @ self.weight.to(args[0].device, args[0].dtype).t()
        index = self._index(output.device)
        if getattr(module, "bias", None) is not None:
            scores = scores + module.bias[index]
        return output.index_copy(-1, index, scores.to(output.dtype))

    def _index(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(self.token_ids, device=device)


__all__ = ["TokenRows"]
