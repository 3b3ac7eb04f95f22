"""The rows of `[Img]`, `[/Img]` and the placeholder of a Setokim, apart from the matrices of its language model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .token_rows import TokenRows

OF_EMBEDDINGS, OF_HEAD = "model.token_rows.weight", "head_rows.weight"


def rows_of_images(config: Any, width: int) -> TokenRows:
    """
    New rows, not filled yet, of the tokens that stand for images.

    Args:
        config ([`SetokimConfig`]): whose ids these are.
        width (`int`): of a row.
    """
    return TokenRows([config.image_token_id, config.image_start_token_id, config.image_end_token_id], width)


class ReadsTokenRows:
    """The core's share: rows of its embeddings."""

    config: Any
    get_input_embeddings: Any
    token_rows: Any

    def _add_rows_of_embeddings(self) -> None:
        embeddings = self.get_input_embeddings()
        self.token_rows = rows_of_images(self.config, embeddings.embedding_dim)
        self._rows_hook = embeddings.register_forward_hook(self.token_rows.of_embeddings)

    def _drop_rows_of_embeddings(self) -> None:
        self._rows_hook.remove()
        self.token_rows = None


class WritesTokenRows:
    """
    The share of a model with a head, and what changes both. What the language model holds in these rows is not looked
    at as long as they are apart; they are part of the trained weights, as `config.trained_token_rows` says.
    """

    config: Any
    model: Any
    lm_head: nn.Linear
    get_input_embeddings: Any
    named_modules: Any
    head_rows: Any

    def _add_rows_of_head(self) -> None:
        if not self.config.tie_word_embeddings:
            self.head_rows = rows_of_images(self.config, self.lm_head.in_features)
        self._head_hook = self.lm_head.register_forward_hook(self._rows_of_head().of_head)

    def _rows_of_head(self) -> Any:
        return self.model.token_rows if self.head_rows is None else self.head_rows

    def add_token_rows(self) -> None:
        """
        Takes the rows of the placeholder, `[Img]` and `[/Img]` out of embeddings and head, so that they can be trained
        and saved where these are frozen. What the model computes stays the same. A model that has them stays as it is.
        """
        if self.config.trained_token_rows:
            return
        self.config.trained_token_rows = True
        self.model._add_rows_of_embeddings()
        self._add_rows_of_head()
        self.model.token_rows.copy_from(self.get_input_embeddings().weight)
        if self.head_rows is not None:
            self.head_rows.copy_from(self.lm_head.weight)
        self._know_as_added({OF_EMBEDDINGS} | ({OF_HEAD} if self.head_rows is not None else set()))

    @torch.no_grad()
    def merge_token_rows(self) -> None:
        """
        Puts these rows back into embeddings and head, as where the language model is to be trained as a whole. What
        the model computes stays the same. A model without them stays as it is.
        """
        if not self.config.trained_token_rows:
            return
        embeddings, rows = self.get_input_embeddings(), self._rows_of_head()
        self.lm_head.weight[list(rows.token_ids)] = rows.weight.to(self.lm_head.weight)
        embeddings.weight[list(rows.token_ids)] = self.model.token_rows.weight.to(embeddings.weight)
        self.model._drop_rows_of_embeddings()
        self._head_hook.remove()
        self.head_rows = None
        self.config.trained_token_rows = False
        self._know_as_added({self._name_of_embeddings(), "lm_head.weight"}, without={OF_EMBEDDINGS, OF_HEAD})

    def merge_rows_into(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Weights as they are with these rows in the matrices; the model stays as it is.

        Args:
            weights (`dict[str, torch.Tensor]`): all weights of the model.
        """
        if not self.config.trained_token_rows:
            return dict(weights)
        merged = {name: tensor for name, tensor in weights.items() if name not in (OF_EMBEDDINGS, OF_HEAD)}
        with torch.no_grad():
            for name, rows in ((self._name_of_embeddings(), self.model.token_rows), ("lm_head.weight", None)):
                if name in merged:
                    merged[name] = (rows or self._rows_of_head()).in_matrix(merged[name])
        return merged

    def _name_of_embeddings(self) -> str:
        embeddings = self.get_input_embeddings()
        return next(f"{name}.weight" for name, module in self.named_modules() if module is embeddings)

    def _know_as_added(self, names: set[str], without: frozenset[str] | set[str] = frozenset()) -> None:
        """What base models lack, by the name that it has: see [`trained_state_dict`]."""
        known: set[str] = getattr(self, "added_weights", set())
        self.added_weights = (known - without) | names


__all__ = ["ReadsTokenRows", "WritesTokenRows", "rows_of_images"]
