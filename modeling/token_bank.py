"""Visual tokens that are chosen among real ones, in place of a regression's mean, where a model writes images."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .visual_tokenizer import computing_dtype

TWINS = 0.01
"""Tokens that are this close, as a share of their distance from the bank's mean, are one that was found twice."""


class TokenBank(nn.Module):
    r"""
    Tokens of real images, and how likely each comes next. What a caption leaves open, a regression averages, and
    averages of tokens are tokens of no image. Here a state \\(h\\) gives each candidate \\(t\\) the score

    $$s(h, t) = q(h)^T k(t), \quad k(t) = (t - \bar t) + \mathrm{MLP}(t - \bar t),$$

    with a linear \\(q\\) and the bank's mean \\(\bar t\\). Learned as a cross-entropy of the true token among the bank
    and the tokens of its own row (noise-contrastive: van den Oord et al., "Representation Learning with Contrastive
    Predictive Coding", Eq. 4), the score is the logarithm of \\(p(t \mid h) / p(t)\\) but for a constant, as far as
    the bank, which is drawn from \\(p(t)\\), outnumbers the row; then the softmax over it draws from
    \\(p(t \mid h)\\). SeTok's paper regresses alone.

    Args:
        num_tokens (`int`): of the bank.
        token_size (`int`): width of a token.
        hidden_size (`int`): width of a state.
    """

    def __init__(self, num_tokens: int, token_size: int, hidden_size: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(num_tokens, token_size), requires_grad=False)
        self.query = nn.Linear(hidden_size, token_size)
        self.key_up = nn.Linear(token_size, 2 * token_size)
        self.key_down = nn.Linear(2 * token_size, token_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts with equal scores of all tokens, and an empty bank."""
        for parameter in (self.tokens, self.query.weight, self.query.bias, self.key_up.bias):
            init.zeros_(parameter)
        for parameter in (self.key_down.weight, self.key_down.bias):
            init.zeros_(parameter)
        init.normal_(self.key_up.weight, std=self.key_up.in_features**-0.5)

    @property
    def is_filled(self) -> bool:
        """Whether tokens were put into the bank."""
        return bool(self.tokens.any())

    @torch.no_grad()
    def fill(self, tokens: torch.Tensor) -> None:
        """
        Puts real tokens into the bank.

        Args:
            tokens (`torch.FloatTensor` of shape `(num_tokens, token_size)`): as many as the bank has places.

        Raises:
            ValueError: if they have another shape.
        """
        if tokens.shape != self.tokens.shape:
            raise ValueError(
                f"The bank has the shape {tuple(self.tokens.shape)}, and the tokens have {tuple(tokens.shape)}: give "
                "as many as it has places, of its width."
            )
        self.tokens.copy_(tokens)

    def forward(self, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Candidates, and what queries are compared with. Where the weights lie elsewhere, such as on disk, this call
        brings them.

        Args:
            tokens (`torch.FloatTensor` of shape `(..., token_size)`, *optional*): candidates; by default the bank.

        Returns:
            `tuple`: the candidates, on the bank's device, and their keys, in float32, both of that shape.
        """
        # A model that was loaded has gradients for everything: the bank is data, and stays as it is.
        bank = self.tokens.detach()
        tokens = bank if tokens is None else tokens.to(bank.device)
        with torch.autocast(bank.device.type, enabled=False):  # tokens may be far from 0 and close to one another
            wide = torch.promote_types(bank.dtype, torch.float32)
            centered = tokens.to(wide) - bank.to(wide).mean(0)
            hidden = self.key_up(centered.to(computing_dtype(self.key_up)))
            moved = self.key_down(nn.functional.gelu(hidden))
        return tokens, centered.float() + moved.float()

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """
        What queries are compared with.

        Args:
            tokens (`torch.FloatTensor` of shape `(..., token_size)`): candidates.

        Returns:
            `torch.FloatTensor` of the same shape, in float32.
        """
        return self(tokens)[1]

    def queries(self, states: torch.Tensor) -> torch.Tensor:
        """
        What states look for.

        Args:
            states (`torch.FloatTensor` of shape `(..., hidden_size)`): last ones, each of the position before a token.

        Returns:
            `torch.FloatTensor` of shape `(..., token_size)`, in float32.
        """
        with torch.autocast(states.device.type, enabled=False):  # scores are differences of large numbers
            return self.query(states.to(computing_dtype(self.query))).float()

    def losses(
        self,
        states: torch.Tensor,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        token_rows: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        """
        Cross-entropy of tokens that are written, each among the bank and all visual tokens of its row of the batch:
        those of an image that is edited among them, which an edit mostly keeps. Other rows make no difference.

        Args:
            states (`torch.FloatTensor` of shape `(num_written, hidden_size)`): that predict them.
            rows (`torch.LongTensor` of shape `(num_written,)`): rows of the batch that they are in.
            tokens (`torch.FloatTensor` of shape `(num_all, token_size)`): all visual tokens of the batch.
            token_rows (`torch.LongTensor` of shape `(num_all,)`): rows that these are in.
            targets (`torch.LongTensor` of shape `(num_written,)`): the right ones, as numbers among all.

        Returns:
            `torch.FloatTensor` of shape `(num_written,)`, in nats.
        """
        queries, keys = self.queries(states), self.keys(tokens.detach())
        with torch.autocast(states.device.type, enabled=False):
            of_bank = queries @ self.keys_of_bank().T
            of_rows = queries @ keys.T
        others = rows[:, None] != token_rows[None]
        scores = torch.cat([of_bank, of_rows.masked_fill(others, -torch.inf)], 1)
        return nn.functional.cross_entropy(scores, targets + len(self.tokens), reduction="none")

    def keys_of_bank(self) -> torch.Tensor:
        """[`TokenBank.keys`] of the bank, `(num_tokens, token_size)`."""
        return self()[1]


class TokenChooser:
    """
    Chooses what comes next in the images that the rows of one generation write. No token is chosen twice for an image,
    nor one that is the same but for rounding, unless all are taken: each stands for a place of its own.

    Args:
        bank ([`TokenBank`]): of the model.
        prompts (`list[torch.FloatTensor]`, *optional*):
            For each prompt the tokens of its images, `(num_tokens_i, token_size)`, which may be chosen as well.
        temperature (`float`, *optional*, defaults to 0.0): of the softmax over scores; 0 takes the best.
        generators (`torch.Generator` or a list of them, *optional*):
            Source of the draws, one for all rows or for each. With one for each, what a row draws is the same alone or
            in any batch.

    Raises:
        ValueError: if the temperature is negative or no number, or nothing has filled the bank.
    """

    def __init__(
        self,
        bank: TokenBank,
        prompts: Sequence[torch.Tensor] | None = None,
        temperature: float = 0.0,
        generators: torch.Generator | Sequence[torch.Generator] | None = None,
    ):
        if not 0 <= temperature < math.inf:
            raise ValueError(f"token_temperature is {temperature}, expected 0 (the best) or more.")
        self.tokens, self.keys = bank()
        if not bool(self.tokens.any()):
            raise ValueError(
                f"The bank of {len(self.tokens)} tokens is empty: train the model, with token_bank_size "
                f"{len(self.tokens)}, which fills it, or write by regression (choose_tokens=False)."
            )
        self.mean = self.tokens.float().mean(0)
        self.temperature, self.generators = temperature, generators
        self.prompts: torch.Tensor | None = None
        if prompts is not None and any(len(tokens) for tokens in prompts):
            device = self.tokens.device
            padded = nn.utils.rnn.pad_sequence([tokens.to(device) for tokens in prompts], batch_first=True)
            lengths = torch.tensor([len(tokens) for tokens in prompts], device=device)
            self.is_real = torch.arange(padded.shape[1], device=device) < lengths[:, None]
            self.prompts, self.prompt_keys = bank(padded)
        self._chosen: torch.Tensor | None = None
        self._taken: torch.Tensor | None = None

    def choose(self, queries: torch.Tensor, writes: torch.Tensor | None = None) -> torch.Tensor:
        """
        Chooses a token for each row.

        Args:
            queries (`torch.FloatTensor` of shape `(batch, token_size)`):
                Of [`TokenBank.queries`]; several rows of each prompt, next to each other, where it is answered often.
            writes (`torch.BoolTensor` of shape `(batch,)`, *optional*):
                Rows that are writing an image: others draw nothing of generators of their own. By default all.

        Returns:
            `torch.FloatTensor` of shape `(batch, token_size)`; NaN where queries are not finite.

        Raises:
            ValueError: if there are several generators, and not one for each row.
        """
        queries = queries.to(self.keys)
        with torch.autocast(queries.device.type, enabled=False):
            scores = queries @ self.keys.T
            if self.prompts is not None:
                copies = len(queries) // len(self.prompts)
                keys, is_real = (part.repeat_interleave(copies, 0) for part in (self.prompt_keys, self.is_real))
                of_prompts = torch.einsum("bd,bnd->bn", queries, keys)
                scores = torch.cat([scores, of_prompts.masked_fill(~is_real, -torch.inf)], 1)
        if self._taken is None:
            self._taken = torch.zeros_like(scores, dtype=torch.bool)
        free = scores.masked_fill(self._taken, -torch.inf)
        # All may be taken, by a bank that is smaller than an image.
        scores = torch.where((free == -torch.inf).all(1, keepdim=True), scores, free)
        if self.temperature:
            scores = scores / self.temperature + self._gumbel_noise(scores, writes)
        self._chosen = scores.argmax(1)
        # What is damaged shows, as it does in what is regressed.
        return self._look_up(self._chosen).masked_fill(~queries.isfinite().all(1, keepdim=True), torch.nan)

    def _look_up(self, numbers: torch.Tensor) -> torch.Tensor:
        size = len(self.keys)
        found = self.tokens[numbers.clamp(max=size - 1)]
        if self.prompts is None:
            return found
        rows = torch.arange(len(numbers), device=numbers.device) // (len(numbers) // len(self.prompts))
        of_prompts = self.prompts[rows, (numbers - size).clamp(min=0)]
        return torch.where((numbers < size)[:, None], found, of_prompts.to(found))

    def _gumbel_noise(self, scores: torch.Tensor, writes: torch.Tensor | None) -> torch.Tensor:
        """Draws of the CPU, the same on every device, of each row by its own generator where there are several."""
        generators = self.generators
        if isinstance(generators, Sequence) and len(generators) == 1:
            (generators,) = generators
        if not isinstance(generators, Sequence):
            return _gumbel(scores.shape, generators).to(scores)
        if len(generators) != len(scores):
            raise ValueError(
                f"There are {len(generators)} generators for {len(scores)} rows that are written: give one for each, "
                "or one for all."
            )
        noise = torch.zeros(scores.shape)
        counts = (scores.shape[1] - self._num_padding(len(scores))).tolist()
        for row, (generator, count) in enumerate(zip(generators, counts)):
            if writes is None or bool(writes[row]):
                noise[row, :count] = _gumbel((count,), generator)
        return noise.to(scores)

    def _num_padding(self, num_rows: int) -> torch.Tensor:
        """How many of the last candidates of each row are none of its own, `(num_rows,)`."""
        if self.prompts is None:
            return torch.zeros(num_rows, dtype=torch.long)
        return (~self.is_real).sum(1).cpu().repeat_interleave(num_rows // len(self.prompts))

    def accept(self, continues: torch.Tensor, begins: torch.Tensor) -> None:
        """
        Notes what came of the last choice.

        Args:
            continues (`torch.BoolTensor` of shape `(batch,)`): rows that took their token.
            begins (`torch.BoolTensor` of shape `(batch,)`): rows that began an image.
        """
        if self._chosen is None or self._taken is None:
            return
        self._taken[begins.to(self._taken.device)] = False
        for row in continues.nonzero()[:, 0].tolist():
            self._taken[row] |= self._twins(row, int(self._chosen[row]))

    def _twins(self, row: int, number: int) -> torch.Tensor:
        """The candidates of a row that are the token of this number, `(num_candidates,)`."""
        candidates = self.tokens.float()
        if self.prompts is not None and self._taken is not None:
            own = self.prompts[row // (len(self._taken) // len(self.prompts))]
            candidates = torch.cat([candidates, own.float()])
        distances = (candidates - candidates[number]).norm(dim=1)
        return distances <= TWINS * (candidates[number] - self.mean).norm()


def _gumbel(shape: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
    device = "cpu" if generator is None else generator.device
    uniform = torch.rand(tuple(shape), generator=generator, device=device).cpu()
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


__all__ = ["TokenBank", "TokenChooser"]
