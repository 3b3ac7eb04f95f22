"""Two-dimensional sine position embeddings."""

import torch


def sine_positions(grid_size: tuple[int, int], width: int, temperature: float = 10000.0) -> torch.Tensor:
    """
    Position embeddings of the patches of a grid: the first half of the channels tells the row, the second the column,
    each by sines and then cosines of wavelengths from 2π to 2π · temperature patches.

    Args:
        grid_size (`tuple[int, int]`): height and width, in patches.
        width (`int`): channels; what is left of four equal parts is zero.
        temperature (`float`): ratio of the longest to the shortest wavelength.

    Returns:
        `torch.FloatTensor` of shape `(num_patches, width)`, patches in row-major order, in float32.
    """
    num_waves = width // 4
    frequencies = temperature ** -(torch.arange(num_waves, dtype=torch.float64) / max(num_waves, 1))
    halves = []
    for axis, length in enumerate(grid_size):
        angles = torch.arange(length, dtype=torch.float64).unsqueeze(1) * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        halves.append((waves.unsqueeze(1 - axis)).expand(*grid_size, -1))
    embedding = torch.cat(halves, dim=-1).flatten(0, 1)
    return torch.nn.functional.pad(embedding, (0, width - embedding.shape[-1])).float()


__all__ = ["sine_positions"]
