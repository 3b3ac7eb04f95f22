"""
Losses on logits, computed together with the head that the logits come from, chunk by chunk over positions.

Both losses of visual modelling are a divergence KL(target ‖ prediction), and that of language modelling is the same
with a target that is certain of one token. With respect to the prediction's logits its gradient is softmax(logits) −
target, which is known as soon as the logits are: gradients of hidden states and head are computed in the forward pass,
and the logits of one chunk make room for those of the next. In float32 those of the first positions lie where the
gradient of the head is to be, which is then written over them, once.
"""

import math
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from .vocabulary_chunks import (
    CACHE_LINE,
    LogitTransform,
    OutputHead,
    TileSoftmax,
    TransposedRows,
    chunks,
    evened,
    positions_per_chunk,
    rows_per_tile,
)

# Tokens whose weight gradient is added at once where the sum is of a wider type, so that what is added stays in cache.
TOKENS_PER_ADDITION = 1024
# Positions for which it is worth to hold logits where the weight's gradient is to be.
LEAST_LENT = 16
# Bound of stretched gradients in float16, whose largest number is 16 times as much.
HALF_ROOM = 4096.0


@torch.compiler.disable
def fused_divergence(
    prediction: OutputHead,
    target: OutputHead | torch.Tensor,
    factor: float | torch.Tensor,
    accumulate_in_fp32: bool = False,
) -> torch.Tensor:
    """
    Sum over positions of KL(target ‖ prediction), times a number, without a matrix of all logits.

    Gradients of the prediction's features, weight and bias are computed here, as far as they are needed, and the
    backward pass multiplies them by what arrives there. The target gets none. Inside of `torch.compile` it runs as it
    is.

    Args:
        prediction (`OutputHead`): whose distributions learn.
        target (`OutputHead` or `torch.LongTensor` of shape `(num_positions,)`):
            The distributions to learn, or the one token of each position: then the loss is cross-entropy.
        factor (`float` or `torch.Tensor`): by which the sum is multiplied.
        accumulate_in_fp32 (`bool`, *optional*, defaults to `False`):
            Computes and adds the weight's gradients of chunks in float32, also where the product's type is narrower.

    Returns:
        `torch.Tensor`: a scalar in float32, in float64 if either side is.
    """
    # Probabilities divided by thousands of positions would vanish in float16, as gradients do before they are scaled.
    inside = prediction.dtype != torch.float16
    settings = _Settings(
        prediction=(prediction.transform, prediction.dtype),
        target=(target.transform, target.dtype) if isinstance(target, OutputHead) else None,
        scale=factor if inside else 1.0,
        accumulate_in_fp32=accumulate_in_fp32,
        needs_gradients=torch.is_grad_enabled(),
    )
    targets = (target.features, target.weight, target.bias) if isinstance(target, OutputHead) else (target, None, None)
    total = _FusedDivergence.apply(
        prediction.features,
        prediction.weight,
        prediction.bias,
        *(None if part is None else part.detach() for part in targets),
        settings,
    )
    return total if inside else total * factor


@dataclass(frozen=True)
class _Settings:
    """What the computation needs beside tensors; transforms and types of products as `OutputHead` has them."""

    prediction: tuple[LogitTransform | None, torch.dtype]
    target: tuple[LogitTransform | None, torch.dtype] | None
    scale: float | torch.Tensor
    accumulate_in_fp32: bool
    needs_gradients: bool


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, target, target_weight, target_bias, settings):
        ctx.save_for_backward(features, weight, bias, target, target_weight, target_bias)
        ctx.settings = settings
        ctx.needed = tuple(settings.needs_gradients and needs for needs in ctx.needs_input_grad[:3])
        tensors = (features, weight, bias, target, target_weight, target_bias)
        ctx.stretches = _stretches(OutputHead(features, weight, bias, *settings.prediction), ctx.needed)
        loss, ctx.gradients = _compute(settings, ctx.needed, ctx.stretches, *tensors)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        # They are handed over: a reference kept here would make autograd copy what it could keep. Whoever retains the
        # graph and comes again has them computed again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _compute(ctx.settings, ctx.needed, ctx.stretches, *ctx.saved_tensors)[1]
        parts = zip(gradients, ctx.saved_tensors, ctx.stretches.of_gradients, strict=False)
        scaled = (None if g is None else _scaled(g, grad_output, stretch).to(part.dtype) for g, part, stretch in parts)
        return *scaled, None, None, None, None


def _scaled(gradient: torch.Tensor, factor: torch.Tensor, stretch: float) -> torch.Tensor:
    """A gradient times a factor, and without its stretch, in place."""
    if stretch != 1:
        # A factor that is a tensor of a GPU would be rounded to the gradient's type, float16, where it may vanish.
        factor = factor / stretch
        for rows in chunks(len(gradient), TOKENS_PER_ADDITION):
            gradient[rows] = gradient[rows].to(factor.dtype).mul_(factor)
        return gradient
    # Elsewhere than on a CPU it takes longer to ask than to multiply.
    unchanged = factor.device.type == "cpu" and factor.item() == 1
    return gradient if unchanged else gradient.mul_(factor)


@dataclass(frozen=True)
class _Stretches:
    """
    Gradients are held in float16 as large as they can be for sure, so that they neither overflow nor vanish before the
    factor of the loss is known.

    Args:
        logits (`float`): what gradients of logits, and those of features and bias with them, are multiplied by.
        weight (`float`): what the product that is the weight's gradient is multiplied by, before it is rounded.
    """

    logits: float = 1.0
    weight: float = 1.0

    @property
    def of_gradients(self) -> tuple[float, float, float]:
        """Of features, weight and bias."""
        return self.logits, self.logits * self.weight, self.logits


@torch.no_grad()
def _stretches(prediction: OutputHead, needed: tuple[bool, ...]) -> _Stretches:
    """
    None but in float16. The gradient of a row of logits, softmax − target, has absolute values that sum to 2 at most,
    and so that of a feature is at most twice the largest weight. That of a weight is a sum over positions, each at
    most the largest feature. A transform of the logits may multiply both: there is room for that.
    """
    if prediction.dtype != torch.float16 or not any(needed) or 0 in prediction.features.shape:
        return _Stretches()
    bounds = torch.stack([part.abs() for t in (prediction.weight, prediction.features) for part in t.aminmax()])
    largest_weight, largest_feature = bounds.float().view(2, 2).amax(1).tolist()
    if not math.isfinite(largest_weight + largest_feature):
        return _Stretches()
    logits = 2.0 ** math.floor(math.log2(HALF_ROOM / max(2 * largest_weight, 1.0)))
    summed = logits * len(prediction.features) * largest_feature
    return _Stretches(logits, min(1.0, 2.0 ** math.floor(math.log2(HALF_ROOM / max(summed, 1.0)))))


Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


@torch.no_grad()
def _compute(
    settings: _Settings,
    needed: tuple[bool, ...],
    stretches: _Stretches,
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    target_weight: torch.Tensor | None,
    target_bias: torch.Tensor | None,
) -> tuple[torch.Tensor, Gradients]:
    """Loss and, as far as they are needed, stretched gradients of the prediction's features, weight and bias."""
    with torch.autocast(features.device.type, enabled=False):
        prediction = OutputHead(features, weight, bias, *settings.prediction)
        compared: _Distributions | _Labels = _Labels(target)
        if settings.target is not None and target_weight is not None:
            compared = _Distributions(OutputHead(target, target_weight, target_bias, *settings.target))
        detached = prediction.detached()
        gradients = _Gradients(prediction, detached, needed, settings.accumulate_in_fp32, stretches)
        loss = _loss_by_chunks(detached, compared, settings.scale, gradients if any(needed) else None)
        return loss, gradients.total()


def _loss_by_chunks(
    prediction: OutputHead,
    target: "_Distributions | _Labels",
    scale: float | torch.Tensor,
    gradients: "_Gradients | None",
) -> torch.Tensor:
    num_positions, vocab_size, device = len(prediction.features), prediction.vocab_size, prediction.features.device
    size = positions_per_chunk(num_positions, vocab_size, prediction.dtype, *target.dtypes)
    tile_rows = rows_per_tile(prediction, size)
    softmax = TileSoftmax(prediction, tile_rows)
    target.allocate(size, tile_rows)
    losses = torch.empty(num_positions, dtype=prediction.loss_dtype, device=device)

    def replace_by_gradients(products: torch.Tensor, positions: slice, first: int = 0) -> None:
        """Notes losses, of rows of the target's chunk the first of which is `first`, and replaces their logits."""
        for tile in chunks(len(products), tile_rows):
            shifted, probabilities, log_sum = softmax(products[tile])
            in_chunk = slice(first + tile.start, first + tile.stop)
            losses[positions][in_chunk] = target.divergence(in_chunk, shifted, log_sum)
            if gradients is not None:
                target.subtract_from(probabilities)
                probabilities.mul_(scale * gradients.stretches.logits)
                products[tile] = softmax.gradient_before_transform(probabilities)

    num_lent = 0
    if gradients is not None and (lent := gradients.lend()) is not None:
        num_lent = lent.shape[1]
        prediction.transposed_products(slice(0, num_lent), out=lent)
        rows = max(CACHE_LINE // lent.element_size(), tile_rows)
        strips = TransposedRows(lent, min(rows, num_lent))
        for positions in chunks(num_lent, size):
            target.begin_chunk(positions)
            for part in chunks(positions.stop - positions.start, rows):
                chosen = slice(positions.start + part.start, positions.start + part.stop)
                strip = strips.read(chosen)
                replace_by_gradients(strip, positions, part.start)
                strips.write(chosen, strip)
        del strips, strip
        gradients.take_back(lent)
    size = evened(num_positions - num_lent, size)
    buffer = torch.empty(size, vocab_size, dtype=prediction.dtype, device=device)
    for positions in chunks(num_positions, size, num_lent):
        products = prediction.products(positions, out=buffer[: positions.stop - positions.start])
        target.begin_chunk(positions)
        replace_by_gradients(products, positions)
        if gradients is not None:
            gradients.add(positions, products)
    return losses.sum() * scale


class _Distributions:
    """A target of distributions, softmax of the logits of another head."""

    def __init__(self, head: OutputHead):
        self._head = head.detached()
        self.dtypes = (head.dtype,)

    def allocate(self, positions: int, tile_rows: int) -> None:
        head = self._head
        self._softmax = TileSoftmax(head, tile_rows)
        self._buffer = torch.empty(positions, head.vocab_size, dtype=head.dtype, device=head.features.device)

    def begin_chunk(self, positions: slice) -> None:
        self._products = self._head.products(positions, out=self._buffer[: positions.stop - positions.start])

    def divergence(self, tile: slice, shifted: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
        own_shifted, self._probabilities, own_log_sum = self._softmax(self._products[tile])
        return own_shifted.sub_(shifted).mul_(self._probabilities).sum(-1) - own_log_sum + log_sum

    def subtract_from(self, probabilities: torch.Tensor) -> None:
        probabilities.sub_(self._probabilities)


class _Labels:
    """A target that is certain of one token at each position."""

    dtypes: tuple[torch.dtype, ...] = ()

    def __init__(self, labels: torch.Tensor):
        self._labels = labels[:, None]

    def allocate(self, positions: int, tile_rows: int) -> None:
        """Needs nothing."""

    def begin_chunk(self, positions: slice) -> None:
        self._chunk = self._labels[positions]

    def divergence(self, tile: slice, shifted: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
        self._tile = self._chunk[tile]
        return log_sum - shifted.gather(1, self._tile)[:, 0]

    def subtract_from(self, probabilities: torch.Tensor) -> None:
        probabilities.scatter_add_(1, self._tile, -probabilities.new_ones(self._tile.shape))


class _Gradients:
    """
    Sums over chunks of the gradients of a head and of its features.

    Args:
        head (`OutputHead`): the head, with its features and weights in the types that gradients have to have.
        detached (`OutputHead`): the same as it is computed with.
        needed (`tuple[bool, bool, bool]`): whether those of features, weight and bias are.
        accumulate_in_fp32 (`bool`): whether a narrower weight's gradient is computed and summed in float32.
        stretches (`_Stretches`): what the gradients are multiplied by.
    """

    def __init__(
        self,
        head: OutputHead,
        detached: OutputHead,
        needed: tuple[bool, ...],
        accumulate_in_fp32: bool,
        stretches: _Stretches,
    ):
        self.stretches = stretches
        self._head, self._operands = head, detached
        self._features = torch.empty_like(self._operands.features) if needed[0] else None
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._has_sum, self._exact = False, accumulate_in_fp32
        if needed[1]:
            wide = accumulate_in_fp32 or head.dtype != head.weight.dtype
            dtype = head.loss_dtype if wide else head.weight.dtype
            self._weight = torch.empty_like(head.weight, dtype=dtype, memory_format=torch.contiguous_format)
        if needed[2] and head.bias is not None:
            self._bias = torch.zeros_like(head.bias, dtype=head.loss_dtype)

    def add(self, positions: slice, logit_gradients: torch.Tensor) -> None:
        if self._features is not None:
            torch.mm(logit_gradients, self._operands.weight, out=self._features[positions])
        if self._bias is not None:
            self._bias += logit_gradients.sum(0, dtype=self._bias.dtype)
        if self._weight is not None:
            self._add_to_weight(self._weight, self._operands.features[positions], logit_gradients)
            self._has_sum = True

    def _add_to_weight(self, total: torch.Tensor, features: torch.Tensor, logit_gradients: torch.Tensor) -> None:
        alpha = self.stretches.weight
        if total.dtype == logit_gradients.dtype:
            # The first chunk is written instead of added to zeros.
            torch.addmm(total, logit_gradients.t(), features, beta=int(self._has_sum), alpha=alpha, out=total)
            return
        if self._exact:
            features = features.to(total.dtype)
        for tokens in chunks(len(total), TOKENS_PER_ADDITION):
            part = logit_gradients[:, tokens].to(features.dtype).t()
            product = part @ features if alpha == 1 else torch.addmm(part[:1, :1], part, features, beta=0, alpha=alpha)
            if self._has_sum:
                total[tokens].add_(product)
            else:
                total[tokens] = product

    def lend(self) -> torch.Tensor | None:
        """
        Memory of the weight's gradient, while it is empty, for transposed logits of as many positions as weights are
        wide, `(vocab_size, positions)`. Of narrower types it takes longer than it is worth.
        """
        num_lent = min(self._operands.features.shape)
        is_alike = self._weight is not None and self._weight.dtype == self._operands.dtype and not self._has_sum
        if self._weight is None or not is_alike or self._weight.element_size() < 4 or num_lent < LEAST_LENT:
            return None
        return self._weight[:, :num_lent]

    def take_back(self, logit_gradients: torch.Tensor) -> None:
        """As `add`, of the first positions: their part of the weight's gradient is written over what was lent."""
        if self._weight is None:
            raise RuntimeError("Nothing was lent.")
        positions = slice(0, logit_gradients.shape[1])
        features = self._operands.features[positions]
        if self._features is not None:
            torch.mm(logit_gradients.t(), self._operands.weight, out=self._features[positions])
        if self._bias is not None:
            self._bias += logit_gradients.sum(1, dtype=self._bias.dtype)
        for tokens in chunks(len(self._weight), TOKENS_PER_ADDITION):
            torch.mm(logit_gradients[tokens].clone(), features, out=self._weight[tokens])
        self._has_sum = True

    def total(self) -> Gradients:
        if self._weight is not None and not self._has_sum:
            self._weight.zero_()
        return (
            None if self._features is None else self._features.to(self._head.features.dtype),
            None if self._weight is None else self._weight.to(self._head.weight.dtype),
            self._bias,
        )


__all__ = ["fused_divergence"]
