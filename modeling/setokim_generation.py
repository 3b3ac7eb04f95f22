"""Text and images in one generation: what each row is writing, and the visual tokens that it wrote."""

from itertools import groupby
from typing import Any

import torch
from transformers import LogitsProcessor

from .token_bank import TokenChooser


class VisualEmission:
    """
    What a generation knows of the images that its rows write. Between `[Img]` and `[/Img]` a row writes visual tokens:
    the output projection of its last state, or what a [`TokenChooser`] takes in its place, which is read back through
    the input projection at the next step. Its ids have a placeholder for each.

    Args:
        config ([`SetokimConfig`]): whose ids stand for images.
        max_image_tokens (`int`): most visual tokens of an image; behind them `[/Img]` follows.
        max_images (`int`, *optional*): most images of a row that are begun; by default any number.
        chooser ([`TokenChooser`], *optional*): chooses tokens; by default they are what the model regresses.
    """

    def __init__(
        self,
        config: Any,
        max_image_tokens: int,
        max_images: int | None = None,
        chooser: TokenChooser | None = None,
    ):
        self.placeholder, self.start, self.end = (
            getattr(config, name) for name in ("image_token_id", "image_start_token_id", "image_end_token_id")
        )
        self.max_image_tokens, self.max_images, self.chooser = max_image_tokens, max_images, chooser
        self.predictions: list[torch.Tensor] = []
        self.writes: torch.Tensor | None = None
        self.scores = torch.empty(0, 2)
        self.prompt_images: torch.Tensor | None = None

    def note(self, predictions: torch.Tensor, logits: torch.Tensor, queries: torch.Tensor | None = None) -> None:
        """
        Notes what the model made of the last position.

        Args:
            predictions (`torch.FloatTensor` of shape `(batch, token_size)`): the visual token that would come next.
            logits (`torch.FloatTensor` of shape `(batch, vocab_size)`): scores of the vocabulary, as they came.
            queries (`torch.FloatTensor` of shape `(batch, token_size)`, *optional*): what a chooser goes by.
        """
        may_write = self.writes is None or bool(self.writes.any())
        if self.chooser is not None and queries is not None and may_write:
            predictions = self.chooser.choose(queries, self.writes).to(predictions)
        self.predictions.append(predictions)
        self.scores = logits[:, [self.placeholder, self.end]].float()

    def accept(self, last: torch.Tensor) -> None:
        """
        Notes what was written last.

        Args:
            last (`torch.LongTensor` of shape `(batch,)`): token ids.
        """
        continues, begins = last == self.placeholder, last == self.start
        self.writes = continues | begins
        if self.chooser is not None:
            self.chooser.accept(continues, begins)

    def num_open(self, input_ids: torch.Tensor) -> torch.Tensor:
        """
        How many visual tokens the image has that a row is writing, `(batch,)`; -1 where it writes text.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): prompt and what was written.
        """
        if input_ids.shape[1] == 0:  # the prompt was given as embeddings
            return torch.full((len(input_ids),), -1, device=input_ids.device)
        places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        last_start, last_end = (((input_ids == token) * places).amax(1) for token in (self.start, self.end))
        counts = ((input_ids == self.placeholder) & (places > last_start[:, None])).sum(1)
        return torch.where(last_start > last_end, counts, -1)

    def may_begin(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether rows may begin another image, `(batch,)`."""
        begun = (input_ids == self.start).sum(1)
        if self.prompt_images is None:
            # An image that the prompt leaves open is the row's own.
            self.prompt_images = begun - (self.num_open(input_ids) >= 0).long()
        if self.max_images is None:
            return torch.ones_like(begun, dtype=torch.bool)
        return begun - self.prompt_images < self.max_images

    def written(self, sequences: torch.Tensor, prompt_length: int) -> list[list[torch.Tensor]]:
        """
        The visual tokens of the images that each row wrote.

        Args:
            sequences (`torch.LongTensor` of shape `(batch, length)`): prompt and what was written.
            prompt_length (`int`): length of the prompt.

        Returns:
            `list[list[torch.FloatTensor]]`: for each row its images, `(num_tokens, token_size)` each.
        """
        images: list[list[torch.Tensor]] = []
        for row, is_visual in enumerate((sequences[:, prompt_length:] == self.placeholder).tolist()):
            runs = [list(run) for visual, run in groupby(range(len(is_visual)), is_visual.__getitem__) if visual]
            images.append([torch.stack([self.predictions[step][row] for step in run]) for run in runs])
        return images


class ImagesInText(LogitsProcessor):
    """
    What may come next: in text everything but a placeholder and `[/Img]`; in an image, by the scores that the model
    itself gave them, one more visual token (the placeholder) or `[/Img]`. An image has one token at least, and
    `max_image_tokens` at most.

    Args:
        emission ([`VisualEmission`]): of the generation; `None` lets no image begin.
        config ([`SetokimConfig`]): whose ids stand for images.
    """

    def __init__(self, emission: VisualEmission | None, config: Any):
        self.emission, self.config = emission, config

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        config, emission = self.config, self.emission
        scores = scores.clone()
        scores[:, [config.image_token_id, config.image_end_token_id]] = -torch.inf
        if emission is None:
            scores[:, config.image_start_token_id] = -torch.inf
            return scores
        scores[~emission.may_begin(input_ids), config.image_start_token_id] = -torch.inf
        counts = emission.num_open(input_ids)
        writes = counts >= 0
        if not writes.any():
            return scores
        more, end = emission.scores.to(scores.device).unbind(1)
        scores[writes] = -torch.inf
        scores[:, config.image_token_id] = torch.where(
            writes & (counts < emission.max_image_tokens), more, scores[:, config.image_token_id]
        )
        scores[:, config.image_end_token_id] = torch.where(
            writes & (counts > 0), end, scores[:, config.image_end_token_id]
        )
        return scores


def padded_tokens(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Visual tokens of several images as one tensor.

    Args:
        images (`list[torch.FloatTensor]`): `(num_tokens_i, token_size)` each.

    Returns:
        `tuple`: tokens `(num_images, num_tokens, token_size)`, zero at padding, and the mask of real ones.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(images, batch_first=True)
    lengths = torch.tensor([len(image) for image in images], device=tokens.device)
    return tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


__all__ = ["ImagesInText", "VisualEmission", "padded_tokens"]
