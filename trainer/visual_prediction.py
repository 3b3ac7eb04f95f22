"""How well a language model predicts visual tokens, and what these look like: the numbers that trainings log."""

import math
import string
import unicodedata
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalPrediction

from ..modeling.divided_weights import whole_root
from ..modeling.language_head import logit_transform
from ..modeling.plain_matrix import matrix_of
from ..modeling.vm_head import last_layer
from ..modeling.vocabulary_distributions import DistributionDivergences, distribution_divergences
from .answer_accuracy import share_right

STATISTICS = ("visual_perplexity", "visual_entropy", "punctuation_share")


@dataclass
class PredictedPositions:
    """
    The image positions of a batch that have a prediction, without a graph.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_positions, hidden_size)`): states that predict them.
        image_features (`torch.FloatTensor` of shape `(num_positions, hidden_size)`): the adapter's output there.
        rows (`torch.LongTensor` of shape `(num_positions,)`): rows of the batch that they are in.
    """

    hidden_states: torch.Tensor
    image_features: torch.Tensor
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls, placeholders: torch.Tensor, predicted: torch.Tensor, states: torch.Tensor, image_features: torch.Tensor
    ) -> "PredictedPositions":
        """
        Gathers the positions of a batch.

        Args:
            placeholders (`torch.BoolTensor` of shape `(batch, sequence_length)`): where tokens of images stand.
            predicted (`torch.BoolTensor` of shape `(batch, sequence_length)`): which of them have a prediction.
            states (`torch.FloatTensor` of shape `(batch, sequence_length, hidden_size)`): last ones of the decoder.
            image_features (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`): the adapter's
                output, in the order of the placeholders.

        Returns:
            [`PredictedPositions`], none of them if nothing is predicted.
        """
        rows, columns = predicted.nonzero(as_tuple=True)
        features = image_features.detach().flatten(0, 1)
        if not len(rows):
            return cls(states.detach()[rows, columns], features[:0], rows)
        numbers = placeholders.flatten().cumsum(0) - 1
        return cls(states.detach()[rows, columns - 1], features[numbers[predicted.flatten()]], rows)


class LastStates:
    """
    Keeps the last states of a decoder from its last forward pass, for who gets to see only what was made of them.

    Args:
        decoder (`nn.Module`): a model without its head.
    """

    def __init__(self, decoder: nn.Module):
        self.states: torch.Tensor | None = None
        decoder.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.states = output.last_hidden_state.detach()


class PredictionStatistics:
    """
    Measures the predictions Q of image positions (Eq. 4) and the visual tokens P' there (Eq. 5), with no matrix of
    logits of all positions.

    Args:
        model ([`VTLMMForCausalLM`]): its two heads are used.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): says which tokens are punctuation marks; without one, that
            is not measured.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any = None):
        self.model, self.tokenizer = model, tokenizer
        self._punctuation: torch.Tensor | None = None

    @torch.no_grad()
    def by_row(self, positions: PredictedPositions | None, num_rows: int, reverse: bool = False) -> torch.Tensor:
        """
        Sums over the image positions of each row of a batch.

        Args:
            positions ([`PredictedPositions`], *optional*): of the batch; `None` if it has no images.
            num_rows (`int`): of the batch.
            reverse (`bool`, *optional*, defaults to `False`): the first sum is that of KL(Q‖P'), Eq. 9, in place of
                KL(P'‖Q), Eq. 6.

        Returns:
            `torch.DoubleTensor` of shape `(num_rows, 5)`: the divergence and the cross entropy −Σ_i P'(i) log Q(i), in
            nats; the entropy of P', in nats; whether its most probable token is a punctuation mark; and the number of
            positions.
        """
        sums = torch.zeros(num_rows, 5, dtype=torch.float64, device="cpu")
        if positions is None:
            return sums
        found = self._divergences(positions)
        values = [
            found.reverse if reverse else found.forward,
            found.forward + found.entropy,
            found.entropy,
            self._is_punctuation(found.top_token),
            torch.ones_like(found.entropy),
        ]
        of_positions = torch.stack([value.double() for value in values], dim=1).cpu()
        return sums.index_add_(0, positions.rows.cpu(), of_positions)

    @torch.no_grad()
    def sums(self, positions: PredictedPositions | None) -> list[float]:
        """
        Sums over image positions.

        Args:
            positions ([`PredictedPositions`], *optional*): of a batch.

        Returns:
            `list[float]`: cross entropy, entropy, punctuation marks and number of positions, as in
            [`PredictionStatistics.by_row`].
        """
        if positions is None:
            return [0.0] * 4
        num_rows = int(positions.rows.max()) + 1 if len(positions) else 0
        return self.by_row(positions, num_rows).sum(0)[1:].tolist()

    def _divergences(self, positions: PredictedPositions) -> DistributionDivergences:
        """Of P' and Q. All processes have to call it, where weights are divided among them."""
        model, states = self.model, positions.hidden_states
        with whole_root(model):
            weight, bias = matrix_of(model.get_output_embeddings(), states.shape[-1], states)
            vm_head = model.model.vm_head
            features, vm_weight = last_layer(vm_head, positions.image_features.to(_dtype_of(vm_head)))
            return distribution_divergences(
                features,
                vm_weight,
                states.to(weight.dtype),
                weight,
                predicting_bias=bias,
                transform_predictions=logit_transform(model.config.text_config),
            )

    def _is_punctuation(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self.tokenizer is None:
            return torch.full(token_ids.shape, math.nan, device=token_ids.device)
        if self._punctuation is None:
            vocab_size = self.model.config.text_config.vocab_size
            self._punctuation = punctuation_tokens(self.tokenizer, vocab_size)
        return self._punctuation.to(token_ids.device)[token_ids]


def punctuation_tokens(tokenizer: Any, vocab_size: int) -> torch.Tensor:
    """
    Which tokens are punctuation marks: those that, but for white space, consist of such alone, by Unicode or as ASCII
    has them. Special tokens are none.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the language model.
        vocab_size (`int`): rows of the head; those behind the tokenizer's last token are none.

    Returns:
        `torch.BoolTensor` of shape `(vocab_size,)`.
    """
    marks = torch.zeros(vocab_size, dtype=torch.bool)
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(min(vocab_size, len(tokenizer))) if token not in special]
    for token, text in zip(ids, tokenizer.batch_decode([[token] for token in ids])):
        text = text.strip()
        marks[token] = bool(text) and all(_is_mark(character) for character in text)
    return marks


def _is_mark(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def statistics_of(sums: list[float]) -> dict[str, float]:
    """
    What sums over image positions come to.

    Args:
        sums (`list[float]`): of [`PredictionStatistics.sums`], over any number of batches and processes.

    Returns:
        `dict[str, float]`: `visual_perplexity`, `visual_entropy` in nats, and `punctuation_share` if it was measured;
        empty without positions.
    """
    cross_entropy, entropy, marks, count = sums
    if not count:
        return {}
    perplexity = math.exp(min(cross_entropy / count, 700.0))
    found = dict(zip(STATISTICS, (perplexity, entropy / count, marks / count)))
    return {name: value for name, value in found.items() if not math.isnan(value)}


@dataclass(frozen=True)
class VisualModelingMetrics:
    """
    Metrics of an evaluation, from what [`VisualModelingTrainer.prediction_step`] returned of each row: sums of the
    losses of its labels and of their number, and, in the stages that have them, those of
    [`PredictionStatistics.by_row`].

    Args:
        stage (`str`): of the training.
        visual_loss_weight (`float`): of the visual loss in the sum.
    """

    stage: str
    visual_loss_weight: float = 1.0

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """
        Args:
            prediction (`EvalPrediction`): predictions are those of [`right_answers`], labels the sums of each row.
        """
        sums = prediction.label_ids.astype("float64").sum(0).tolist()
        found = {"loss": self.loss(sums)}
        if sums[1]:
            found |= {"loss_lm": sums[0] / sums[1], "answer_accuracy": share_right(prediction.predictions)}
        if len(sums) > 2 and sums[-1]:
            found |= {"loss_vm": sums[2] / sums[-1], **statistics_of(sums[3:])}
        return found

    def loss(self, sums: list[float]) -> float:
        """
        What the stage minimises.

        Args:
            sums (`list[float]`): over any number of rows.
        """
        text = sums[0] / sums[1] if sums[1] else 0.0
        images = sums[2] / sums[-1] if len(sums) > 2 and sums[-1] else 0.0
        return text + (self.visual_loss_weight if self.stage == "visual_modeling" else 1.0) * images


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())


__all__ = [
    "LastStates",
    "PredictedPositions",
    "PredictionStatistics",
    "VisualModelingMetrics",
    "punctuation_tokens",
    "statistics_of",
]
