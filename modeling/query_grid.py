"""What queries that stand for the squares of an image learn: what is seen there, and which token is there."""

import torch
from torch import nn


class QueryGrid(nn.Module):
    """
    Heads on the output of a [`FeatureMapper`] with `query_grid`: each query makes a preview of its square of the
    image, without noise, and tells which visual token lies there. Not in SeTok, whose mapper starts from BERT and is
    read by a U-Net that has learned to read text. From random weights both learn to do without the tokens, unless the
    mapper is told what it is for.

    Args:
        side (`int`): queries in a row of the image.
        condition_size (`int`): width of the mapper's output.
        token_size (`int`): width of visual tokens.
        num_channels (`int`): of the latents (or pixels) that are previewed.
        sample_size (`int`): their side, a multiple of `side`.
    """

    def __init__(self, side: int, condition_size: int, token_size: int, num_channels: int, sample_size: int):
        super().__init__()
        self.side, self.cell = side, sample_size // side
        self.preview = nn.Linear(condition_size, num_channels * self.cell**2)
        self.token_norm = nn.LayerNorm(token_size)
        self.place_query = nn.Linear(condition_size, condition_size)
        self.place_key = nn.Linear(token_size, condition_size)

    def previews(self, condition: torch.Tensor) -> torch.Tensor:
        """
        The squares put together.

        Args:
            condition (`torch.FloatTensor` of shape `(batch, side², condition_size)`): of the mapper.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_channels, sample_size, sample_size)`.
        """
        squares = self.preview(condition).transpose(1, 2).unflatten(2, (self.side, self.side))
        return nn.functional.pixel_shuffle(squares, self.cell)

    def preview_loss(self, condition: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """
        Mean squared error of the previews.

        Args:
            condition (`torch.FloatTensor` of shape `(batch, side², condition_size)`): of the mapper.
            latents (`torch.FloatTensor` of shape `(batch, num_channels, sample_size, sample_size)`): without noise.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        return (self.previews(condition).float() - latents.float()).square().mean((1, 2, 3))

    def placement_loss(
        self,
        condition: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        cluster_masks: torch.Tensor,
        grid_size: tuple[int, int],
    ) -> torch.Tensor:
        """
        Cross-entropy of the token that each square shows, where a square shows several with their shares.

        Args:
            condition (`torch.FloatTensor` of shape `(batch, side², condition_size)`): of the mapper.
            tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`): visual tokens.
            mask (`torch.BoolTensor` of shape `(batch, num_tokens)`, *optional*): True at real tokens.
            cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`): which patches each token
                is made of.
            grid_size (`tuple[int, int]`): height and width of the image in patches.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        covered = nn.functional.adaptive_avg_pool2d(cluster_masks.detach().float().unflatten(2, grid_size), self.side)
        shares = covered.flatten(2) / covered.flatten(2).sum(1, keepdim=True).clamp(min=1e-6)
        keys = self.place_key(self.token_norm(tokens.to(condition.dtype)))
        logits = torch.bmm(keys, self.place_query(condition).transpose(1, 2)) * condition.shape[-1] ** -0.5
        logits = logits.float()
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(2), torch.finfo(logits.dtype).min)
        return -(shares * logits.log_softmax(1)).sum(1).mean(1)


__all__ = ["QueryGrid"]
