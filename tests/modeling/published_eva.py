"""EVA-02 and GVT as their authors publish them: the layout of the checkpoints, and the equations, slow and plain."""

import json
import math
from pathlib import Path

import numpy as np
import torch

LAYOUTS = Path(__file__).parent / "published_layouts"

# Sizes of L/14 → sizes of a tiny checkpoint: 3 × 3 patches of 8 pixels, 2 heads of 16.
TINY = {1024: 32, 2730: 43, 257: 10, 256: 9, 14: 8, 64: 16, 768: 20, 1000: 12}
TINY |= {1536: 20, 3072: 40, 4096: 56}
TINY_LLM_WIDTH = 48


def layout(name: str) -> dict:
    return json.loads((LAYOUTS / f"{name}.json").read_text(encoding="utf-8"))


def shapes_of(published: dict, num_layers: int | None = None, num_resampler_layers: int | None = None) -> dict:
    """Every tensor of a layout with its shape, layers written out."""
    shapes = {name: tuple(shape) for part in ("weights", "buffers") for name, shape in published[part].items()}
    layers = {"layer_weights": num_layers or published["num_layers"]}
    layers["layer_buffers"] = layers["layer_weights"]
    if "resampler_layer_weights" in published:
        layers["resampler_layer_weights"] = num_resampler_layers or published["num_resampler_layers"]
    for part, number in layers.items():
        for layer in range(number):
            shapes |= {name.format(layer=layer): tuple(shape) for name, shape in published[part].items()}
    return shapes


def random_checkpoint(name: str, seed: int = 0, dtype=torch.float64, grid: int = 3, num_layers: int = 2) -> dict:
    """A tiny checkpoint with the names of a layout; rotary tables as the authors' code registers them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = TINY | {257: 1 + grid**2, 256: grid**2}
    tensors = {}
    for key, shape in shapes_of(layout(name), num_layers=num_layers, num_resampler_layers=2).items():
        shape = [sizes.get(size, size) for size in shape]
        if key.startswith(("llm_proj", "input_ln")):
            shape[0] = TINY_LLM_WIDTH
        if "rope.freqs" in key:
            angles = torch.tensor(slow_angles((grid, grid), shape[1]), dtype=torch.float64)
            tensors[key] = (angles.cos() if key.endswith("cos") else angles.sin()).repeat_interleave(2, -1).to(dtype)
            continue
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        is_norm_scale = key.endswith("weight") and len(shape) == 1
        spread = 1.0 if key.endswith(("latents", "cls_token", "pos_embed", "media_pos_emb")) else 0.25
        tensors[key] = (values * spread + (1.0 if is_norm_scale else 0.0)).to(dtype)
    return tensors


def slow_angles(grid: tuple[int, int], head_dim: int, reach: int = 16, theta: float = 10000.0) -> np.ndarray:
    """The angle of every pair of channels at every patch."""
    angles = np.zeros((grid[0] * grid[1], head_dim // 2))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for pair in range(head_dim // 4):
                frequency = theta ** (-2 * pair / (head_dim // 2))
                patch = row * grid[1] + column
                angles[patch, pair] = row / grid[0] * reach * frequency
                angles[patch, head_dim // 4 + pair] = column / grid[1] * reach * frequency
    return angles


def slow_norm(x: np.ndarray, weights: dict, name: str, eps: float) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def slow_bicubic(learned: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cubic convolution (a = -0.75) of `(height, width, channels)`, pixel centres aligned, borders repeated."""

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    result = np.zeros((*size, learned.shape[2]))
    for row in range(size[0]):
        for column in range(size[1]):
            y = (row + 0.5) * learned.shape[0] / size[0] - 0.5
            x = (column + 0.5) * learned.shape[1] / size[1] - 0.5
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    at = learned[min(max(i, 0), learned.shape[0] - 1), min(max(j, 0), learned.shape[1] - 1)]
                    result[row, column] += weight(y - i) * weight(x - j) * at
    return result


def slow_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One head: (queries, channels), (keys, channels), (keys, channels)."""
    update = np.zeros((len(query), value.shape[1]))
    for position, q in enumerate(query):
        scores = np.array([sum(q * k) / math.sqrt(len(q)) for k in key])
        attention = np.exp(scores - scores.max())
        update[position] = (attention / attention.sum()) @ value
    return update


def slow_tower(
    tensors: dict, image: torch.Tensor, prefix: str, patch: int = 8, num_heads: int = 2
) -> list[np.ndarray]:
    """
    What goes into every layer and what comes out of the last, by the equations of EVA-02, for one image
    `(channels, height, width)` and weights under their published names.
    """
    w = {name.removeprefix(prefix): tensor.double().numpy() for name, tensor in tensors.items()}
    pixels = image.double().numpy()
    grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
    side = math.isqrt(w["pos_embed"].shape[1] - 1)
    positions = w["pos_embed"][0, 1:].reshape(side, side, -1)
    positions = positions if grid == (side, side) else slow_bicubic(positions, grid)
    tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for row in range(grid[0]):
        for column in range(grid[1]):
            window = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            embedding = (w["patch_embed.proj.weight"] * window).sum((1, 2, 3)) + w["patch_embed.proj.bias"]
            tokens.append(embedding + positions[row, column])
    x = np.stack(tokens)
    head_dim = x.shape[1] // num_heads
    turns = np.exp(1j * slow_angles(grid, head_dim))
    states = [x]
    layer = 0
    while f"blocks.{layer}.norm1.weight" in w:
        x = _slow_layer(x, w, f"blocks.{layer}.", turns, num_heads)
        states.append(x)
        layer += 1
    return states


def _slow_layer(x: np.ndarray, w: dict, start: str, turns: np.ndarray, num_heads: int) -> np.ndarray:
    normed = slow_norm(x, w, f"{start}norm1", 1e-6)
    query = normed @ w[f"{start}attn.q_proj.weight"].T + w[f"{start}attn.q_bias"]
    key = normed @ w[f"{start}attn.k_proj.weight"].T
    value = normed @ w[f"{start}attn.v_proj.weight"].T + w[f"{start}attn.v_bias"]
    heads = []
    for head in range(num_heads):
        channels = slice(head * x.shape[1] // num_heads, (head + 1) * x.shape[1] // num_heads)
        heads.append(
            slow_attention(
                _slow_turn(query[:, channels], turns), _slow_turn(key[:, channels], turns), value[:, channels]
            )
        )
    update = np.concatenate(heads, axis=1)
    if f"{start}attn.inner_attn_ln.weight" in w:
        update = slow_norm(update, w, f"{start}attn.inner_attn_ln", 1e-6)
    x = x + update @ w[f"{start}attn.proj.weight"].T + w[f"{start}attn.proj.bias"]
    normed = slow_norm(x, w, f"{start}norm2", 1e-6)
    gate = normed @ w[f"{start}mlp.w1.weight"].T + w[f"{start}mlp.w1.bias"]
    hidden = gate / (1 + np.exp(-gate)) * (normed @ w[f"{start}mlp.w2.weight"].T + w[f"{start}mlp.w2.bias"])
    if f"{start}mlp.ffn_ln.weight" in w:
        hidden = slow_norm(hidden, w, f"{start}mlp.ffn_ln", 1e-6)
    return x + hidden @ w[f"{start}mlp.w3.weight"].T + w[f"{start}mlp.w3.bias"]


def _slow_turn(states: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Neighbouring channels as complex numbers, multiplied by unit ones; [CLS], the first token, stays."""
    turned = states.copy()
    pairs = (states[1:, 0::2] + 1j * states[1:, 1::2]) * turns
    turned[1:, 0::2], turned[1:, 1::2] = pairs.real, pairs.imag
    return turned


def slow_resampler(tensors: dict, features: np.ndarray, head_dim: int = 10) -> np.ndarray:
    """Visual tokens that the language model of GVT reads, of one image's features, under the published names."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    media = slow_norm(features, w, "ln_vision", 1e-5) + w["perceiver.media_pos_emb"][0]
    latents = w["perceiver.latents"]
    layer = 0
    while f"perceiver.layers.{layer}.0.to_q.weight" in w:
        start = f"perceiver.layers.{layer}."
        normed = slow_norm(latents, w, f"{start}0.norm_latents", 1e-5)
        read = np.concatenate([slow_norm(media, w, f"{start}0.norm_media", 1e-5), normed])
        query = normed @ w[f"{start}0.to_q.weight"].T
        both = read @ w[f"{start}0.to_kv.weight"].T
        key, value = both[:, : query.shape[1]], both[:, query.shape[1] :]
        heads = [slice(first, first + head_dim) for first in range(0, query.shape[1], head_dim)]
        update = np.concatenate([slow_attention(query[:, h], key[:, h], value[:, h]) for h in heads], axis=1)
        latents = latents + update @ w[f"{start}0.to_out.weight"].T
        hidden = slow_norm(latents, w, f"{start}1.0", 1e-5) @ w[f"{start}1.1.weight"].T
        gelu = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        latents = latents + gelu @ w[f"{start}1.3.weight"].T
        layer += 1
    return slow_norm(latents, w, "perceiver.norm", 1e-5) @ w["llm_proj.weight"].T + w["llm_proj.bias"]
