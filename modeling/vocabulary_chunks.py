"""
Output heads in chunks of positions: what a loss or a statistic over the vocabulary needs, without the logits of all
positions at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

# Positions whose logits are held at once. Fewer make matrix products slow and read and write weights more often, more
# take memory; small vocabularies get more. Of two heads it depends on the bytes of a logit: from the fewest to the
# most it is a share of all positions, so that memory stays small beside what few positions need without chunks.
POSITIONS_OF_ONE_HEAD = 192
POSITIONS_OF_TWO_HEADS = {2: (192, 192), 4: (116, 176), 8: (96, 96)}
SHARE_OF_POSITIONS = 11
SMALL_VOCABULARY = 32_000
# Logits that are turned into probabilities at once: few enough to stay in a CPU's cache over all the passes, and many
# enough to be worth the calls; elsewhere the launch of a kernel.
TILE_ON_CPU = {2: 2**18, 4: 2**16, 8: 2**16}
TILE_ELSEWHERE = 2**22
CACHE_LINE = 64  # bytes

LogitTransform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class OutputHead:
    """
    A head and what it is applied to: logits are `transform(features · weightᵀ + bias)`.

    Args:
        features (`torch.FloatTensor` of shape `(num_positions, width)`): hidden states or image features.
        weight (`torch.FloatTensor` of shape `(vocab_size, width)`): weight of the head.
        bias (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*): bias of the head.
        transform (`Callable`, *optional*):
            What the model does to its logits behind the head, row by row: a factor, a soft cap. It gets and returns
            logits of shape `(rows, vocab_size)`, in `loss_dtype`.
        dtype (`torch.dtype`): what the matrix product is computed in.
    """

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    transform: LogitTransform | None
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        transform: LogitTransform | None = None,
    ) -> "OutputHead":
        """A head that computes in autocast's type where that is on, else in the wider type of features and weight."""
        dtype, device = torch.promote_types(features.dtype, weight.dtype), features.device.type
        if dtype != torch.float64 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return cls(features, weight, bias, transform, dtype)

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def loss_dtype(self) -> torch.dtype:
        """What probabilities are computed in: float32, or float64 if the product is."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def detached(self) -> "OutputHead":
        """The same head without a graph, with everything in the type of the matrix product."""
        bias = None if self.bias is None else self.bias.detach().to(self.dtype)
        features, weight = self.features.detach().to(self.dtype), self.weight.detach().to(self.dtype)
        return OutputHead(features, weight, bias, self.transform, self.dtype)

    def products(self, positions: slice, out: torch.Tensor) -> torch.Tensor:
        """Writes to `out` the logits before `transform` of some positions of a detached head, and returns it."""
        if self.bias is None:
            return torch.mm(self.features[positions], self.weight.t(), out=out)
        return torch.addmm(self.bias, self.features[positions], self.weight.t(), out=out)

    def transposed_products(self, positions: slice, out: torch.Tensor) -> torch.Tensor:
        """As `products`, of shape `(vocab_size, positions)`."""
        if self.bias is None:
            return torch.mm(self.weight, self.features[positions].t(), out=out)
        return torch.addmm(self.bias[:, None], self.weight, self.features[positions].t(), out=out)

    def logits(self) -> torch.Tensor:
        """Logits of all positions, with their graph, in `loss_dtype`."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        products = nn.functional.linear(self.features.to(self.dtype), self.weight.to(self.dtype), bias)
        logits = products.to(self.loss_dtype)
        return logits if self.transform is None else self.transform(logits)


class TileSoftmax:
    """
    Softmax of the logits of a head, a few rows at a time, in buffers that are reused.

    Args:
        head (`OutputHead`): whose logits they are.
        rows (`int`): the most rows that come at once.
    """

    def __init__(self, head: OutputHead, rows: int):
        size, device = (rows, head.vocab_size), head.features.device
        self._transform, self._dtype = head.transform, head.loss_dtype
        self._probabilities = torch.empty(size, dtype=head.loss_dtype, device=device)
        # Products that already are of that type are overwritten, where no transform has to see them again.
        copies = head.dtype != head.loss_dtype or head.transform is not None
        self._shifted = torch.empty(size, dtype=head.loss_dtype, device=device) if copies else None
        self._transformed: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            products (`torch.FloatTensor` of shape `(rows, vocab_size)`): logits before the transform; overwritten.

        Returns:
            `tuple`: logits minus the row's largest, probabilities, both `(rows, vocab_size)` and valid until the next
            call, and the logarithm of what the exponentials of those shifted logits sum to, `(rows,)`.
        """
        shifted = products
        if self._shifted is not None:
            logits = products if self._transform is None else self._apply(self._transform, products)
            shifted = self._shifted[: len(products)].copy_(logits)
        shifted.sub_(shifted.amax(-1, keepdim=True))
        probabilities = torch.softmax(shifted, -1, out=self._probabilities[: len(products)])
        # The largest probability is exp(0) over the sum. On CPUs logsumexp takes several times as long as softmax.
        return shifted, probabilities, probabilities.amax(-1).log_().neg_()

    def _apply(self, transform: LogitTransform, products: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            raw = products.to(self._dtype, copy=True).requires_grad_()
            transformed = transform(raw)
        self._transformed = (raw, transformed)
        return transformed.detach()

    def gradient_before_transform(self, gradient: torch.Tensor) -> torch.Tensor:
        """From a gradient with respect to the last call's logits that with respect to its products."""
        if self._transformed is None:
            return gradient
        (raw, transformed), self._transformed = self._transformed, None
        return torch.autograd.grad(transformed, raw, gradient)[0]


class TransposedRows:
    """
    Columns of a matrix as rows that lie in memory one after the other, some at a time, in a buffer that is reused.

    Args:
        matrix (`torch.Tensor` of shape `(length, num_rows)`): may have a greater stride than `num_rows`.
        rows (`int`): the most that come at once.
    """

    def __init__(self, matrix: torch.Tensor, rows: int):
        self._matrix = matrix
        # In two steps, the first of which moves whole lines of the cache: columns are far apart in memory.
        self._columns, self._rows = matrix.new_empty(len(matrix) * rows), matrix.new_empty(rows, len(matrix))

    def read(self, chosen: slice) -> torch.Tensor:
        """Some columns, `(rows, length)`; valid until the next call."""
        columns = self._column_buffer(chosen).copy_(self._matrix[:, chosen])
        return self._rows[: columns.shape[1]].copy_(columns.t())

    def write(self, chosen: slice, rows: torch.Tensor) -> None:
        """Puts rows back where `read` took them from."""
        self._matrix[:, chosen] = self._column_buffer(chosen).copy_(rows.t())

    def _column_buffer(self, chosen: slice) -> torch.Tensor:
        length, number = len(self._matrix), chosen.stop - chosen.start
        return self._columns[: length * number].view(length, number)


def chunks(total: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of length `size` that cover `range(start, total)`; the last may be shorter."""
    for first in range(start, total, size):
        yield slice(first, min(first + size, total))


def positions_per_chunk(num_positions: int, vocab_size: int, *dtypes: torch.dtype) -> int:
    """How many positions' logits, of one head or two in the types given, are held at once, in chunks of equal size."""
    positions = POSITIONS_OF_ONE_HEAD
    if len(dtypes) > 1:
        fewest, most = min(POSITIONS_OF_TWO_HEADS[dtype.itemsize] for dtype in dtypes)
        positions = min(max(num_positions // SHARE_OF_POSITIONS, fewest), most)
    size = min(max(positions, positions * SMALL_VOCABULARY // vocab_size), max(num_positions, 1))
    return evened(num_positions, size)


def evened(total: int, size: int) -> int:
    """The length of as few chunks as those of `size` are, but of equal ones; 1 of nothing."""
    return math.ceil(total / math.ceil(total / size)) if total else 1


def rows_per_tile(head: OutputHead, chunk_size: int) -> int:
    """How many rows of the logits of a chunk are turned into probabilities at once."""
    on_cpu = head.features.device.type == "cpu"
    logits = TILE_ON_CPU[head.features.element_size()] if on_cpu else TILE_ELSEWHERE
    return min(max(1, logits // head.vocab_size), chunk_size)


__all__ = [
    "CACHE_LINE",
    "LogitTransform",
    "OutputHead",
    "TileSoftmax",
    "TransposedRows",
    "chunks",
    "evened",
    "positions_per_chunk",
    "rows_per_tile",
]
