"""A first projection of visual tokens into a language model's embeddings, in closed form, from words about images."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

RIDGE = 0.1


@dataclass
class AlignedProjection:
    """
    What [`ProjectionAlignment`] found.

    Args:
        weight (`torch.FloatTensor` of shape `(embedding_size, token_size)`): of the projection.
        bias (`torch.FloatTensor` of shape `(embedding_size,)`): of the projection.
        explained (`float`): share of the variance of the targets that the regression explains, of the examples given.
        num_examples (`int`): how many there were.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    explained: float
    num_examples: int


class ProjectionAlignment:
    r"""
    Ridge regression from visual tokens to the embeddings of the words that are said of their images. The sum of an
    image's projected tokens is to be the sum of its words' embeddings \\(\sum_w \log(n / n_w) e_w\\), where \\(n_w\\)
    of \\(n\\) examples have the word: words that all have count nothing. As the projection is linear, each token gets
    the words that go with it, though no example says which.

    A projection from random weights lies where no word does, and a small language model learns to answer without it
    long before it could learn to read it. This one is only where to start: its tokens lie around the mean of the
    embeddings, as far from it as words do (root mean square). No paper has it.

    Args:
        embeddings (`torch.FloatTensor` of shape `(vocab_size, embedding_size)`):
            What words enter the language model as. Some models scale what they look up: see [`embedding_table`].
        ridge (`float`, *optional*, defaults to 0.1): penalty, in means of the diagonal of the tokens' Gram matrix.

    Raises:
        ValueError: if the penalty is not positive.
    """

    def __init__(self, embeddings: torch.Tensor, ridge: float = RIDGE):
        if not ridge > 0:
            raise ValueError(f"ridge is {ridge!r}, expected a number above 0.")
        self.embeddings, self.ridge = embeddings.detach(), ridge
        self._sums: list[torch.Tensor] = []
        self._counts: list[int] = []
        self._words: list[list[int]] = []
        self._moment: torch.Tensor | None = None

    def add(self, tokens: torch.Tensor, words: Iterable[int]) -> None:
        """
        Adds an example.

        Args:
            tokens (`torch.FloatTensor` of shape `(num_tokens, token_size)`): visual tokens of its images.
            words (`Iterable[int]`): token ids of what is said of them; each counts once.
        """
        tokens = tokens.detach().double().cpu()
        gram = tokens.T @ tokens
        self._moment = gram if self._moment is None else self._moment + gram
        self._sums.append(tokens.sum(0))
        self._counts.append(len(tokens))
        self._words.append(sorted(set(words)))

    def solve(self) -> AlignedProjection:
        """
        Returns:
            [`AlignedProjection`], in float32.

        Raises:
            ValueError: if there are no examples, or nothing in them differs: their words, or their tokens.
        """
        if self._moment is None:
            raise ValueError("There is nothing to align the projection with: no example has an image and an answer.")
        n, sums = len(self._sums), torch.stack(self._sums)
        counts = torch.tensor(self._counts, dtype=torch.float64).unsqueeze(1)
        mean = sums.sum(0) / counts.sum()
        covariance = self._moment / counts.sum() - torch.outer(mean, mean)
        targets = self._targets(n)
        inputs = torch.cat([sums - counts * mean, counts, torch.ones_like(counts)], 1)
        penalty = torch.zeros(inputs.shape[1], dtype=torch.float64)
        gram = inputs.T @ inputs
        penalty[: len(mean)] = self.ridge * gram.diagonal()[: len(mean)].mean()  # not of the constant and the number
        # The number of tokens may be the same for all images.
        found = torch.linalg.lstsq(gram + penalty.diag(), inputs.T @ targets, driver="gelsd").solution
        rest, spread = targets - inputs @ found, targets - targets.mean(0)
        weight = found[: len(mean)].T
        length = (weight @ covariance @ weight.T).diagonal().sum().clamp(min=0).sqrt()
        if not length > 0:
            raise ValueError(
                f"There is nothing to align the projection with: the {n} examples differ neither in the tokens of "
                "their images nor in what is said of them."
            )
        center, distance = self._center_and_distance()
        weight = weight * (distance / length)
        bias = center - weight @ mean
        explained = 1 - (rest.square().sum() / spread.square().sum()).item()
        return AlignedProjection(weight.float(), bias.float(), explained, n)

    def _center_and_distance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the embeddings and their root mean square distance from it, without a copy of them all."""
        center = self.embeddings.mean(0, dtype=torch.float64).cpu()
        squares = [(part.cpu().double() - center).square().sum() for part in self.embeddings.split(4096)]
        return center, (torch.stack(squares).sum() / len(self.embeddings)).sqrt()

    def _targets(self, n: int) -> torch.Tensor:
        frequency = Counter(word for words in self._words for word in words)
        rare = {word: math.log(n / count) for word, count in frequency.items() if count < n}
        targets = torch.zeros(n, self.embeddings.shape[1], dtype=torch.float64)
        for row, words in enumerate(self._words):
            if kept := [word for word in words if word in rare]:
                weights = torch.tensor([rare[word] for word in kept], dtype=torch.float64)
                targets[row] = weights @ self.embeddings[kept].double().cpu()
        return targets


__all__ = ["AlignedProjection", "ProjectionAlignment"]
