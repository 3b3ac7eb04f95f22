"""A probe that reads what visual tokens hold, before anything is drawn of them: classes, counts and colours."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..modeling.atomic_folder import cache_dir
from .contents_probe import ContentsReading, DensityProbe, SavedProbe, load_probe
from .contents_probe_fitting import EPOCHS, ContentsTargets, cached_probe, fit_probe
from .contents_probe_training import scenes_digest, training_scenes
from .contents_scores import Contents, check_asked, contents_score
from .image_writers import TokenizerWriter
from .predictions import fingerprint

_REVISION = 1  # of the recipe: another one is another probe
_BATCH = 32
SCORED = ("found", "missing", "extra", "counts", "counted", "colors", "colored")
"""What records have of the tokens, each with `token_` before it."""


@dataclass(frozen=True)
class TokenProbeConfig:
    """
    What a probe of tokens reads.

    Args:
        classes (`tuple[str, ...]`): names of classes.
        colors (`tuple[str, ...]`): names of colours; the first is `""`, for objects that have no single one.
        token_size (`int`): width of the tokens.
        grid_size (`tuple[int, int]`): 1, and the number of tokens of an image; of the probe itself the largest that
            it was trained with.
        hidden_size (`int`, *optional*, defaults to 128): of the probe's own layers.
        dropout (`float`, *optional*, defaults to 0.3): of tokens and of hidden states in training.
        thresholds (`tuple[float, ...]`, *optional*): for each class the count from which it is there.
    """

    classes: tuple[str, ...]
    colors: tuple[str, ...]
    token_size: int
    grid_size: tuple[int, int]
    hidden_size: int = 128
    dropout: float = 0.3
    thresholds: tuple[float, ...] = ()


class TokenContentsProbe(DensityProbe):
    """
    Reads visual tokens one by one, with two hidden layers: how many objects a token holds (a density, so that sums are
    counts), which share of them each class has, and of which colour they are. Trained on the tokens of scenes whose
    contents are known; which token is of which object it is not told.

    Args:
        config ([`TokenProbeConfig`]): its sizes.
    """

    config: TokenProbeConfig

    def __init__(self, config: TokenProbeConfig):
        super().__init__(config, config.token_size)
        self.hidden = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = self.new_output()

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            tokens (`torch.FloatTensor` of shape `(batch, num_tokens, token_size)`): padded.
            mask (`torch.BoolTensor` of shape `(batch, num_tokens)`): which of them are tokens.

        Returns:
            `tuple` of densities, `(batch, num_tokens, num_classes)`, 0 where there is no token, and logits of colours,
            `(batch, num_tokens, num_colors)`.
        """
        hidden = self.dropout(nn.functional.gelu(self.hidden(self.projected(tokens))))
        densities, colors = self.densities_and_colors(self.output(hidden))
        return densities * mask.unsqueeze(-1), colors


class TokenProbeReader(SavedProbe):
    """
    A trained probe of tokens.

    Args:
        probe ([`TokenContentsProbe`]): trained.
        facts (`dict`, *optional*): what is known of its training, for reports.
    """

    def __init__(self, probe: TokenContentsProbe, facts: Mapping[str, Any] | None = None):
        super().__init__(probe, facts)

    @torch.no_grad()
    def read(self, tokens: Sequence[Any]) -> list[ContentsReading]:
        """
        Reads the tokens of images.

        Args:
            tokens (`list`): for each image its tokens, a list of lists, an array or a tensor of shape `(num_tokens,
                token_size)`; there may be none.

        Returns:
            `list[ContentsReading]`: whose grid is 1 × the number of tokens.

        Raises:
            ValueError: if tokens have another width.
        """
        found = []
        for of_image in tokens:
            values = torch.as_tensor(of_image, dtype=torch.float)
            values = values.reshape(0, self.config.token_size) if values.numel() == 0 else values
            if values.ndim != 2 or values.shape[1] != self.config.token_size:
                raise ValueError(
                    f"Tokens have the shape {tuple(values.shape)}, expected (number, {self.config.token_size}): read "
                    "them with a probe that was trained on tokens of the same model."
                )
            densities, colors = self.probe(values[None], torch.ones(1, len(values), dtype=torch.bool))
            config = replace(self.config, grid_size=(1, len(values)))
            found.append(ContentsReading(densities[0], colors[0].softmax(-1), config))
        return found

    def score(self, tokens: Sequence[Any], examples: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        """
        Compares what tokens hold with what captions ask for.

        Args:
            tokens (`list`): for each caption the tokens of its image, see [`TokenProbeReader.read`], or `None`.
            examples (`list[dict]`): the captions, with `contents`.

        Returns:
            `list[dict]`: what [`contents_score`] counts, with `token_` before its names; not a number, where there are
            no tokens to read.

        Raises:
            ValueError: if a caption names a class that the probe does not know, or tokens have another width.
        """
        check_asked(examples, self.config.classes)
        found = []
        for of_image, example in zip(tokens, examples):
            score: Mapping[str, float] = dict.fromkeys(SCORED, float("nan"))
            if of_image is not None:
                score = contents_score(self.read([of_image])[0], example["contents"])
            found.append({f"token_{name}": score[name] for name in SCORED})
        return found

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TokenProbeReader":
        """
        Reads a probe that was saved.

        Args:
            folder (`str`): of the probe.

        Raises:
            FileNotFoundError: if there is no probe in the folder.
            ValueError: if its files are damaged.
        """
        return cls(*load_probe(folder, lambda **values: TokenContentsProbe(TokenProbeConfig(**values))))


def token_probe_of_scenes(
    folder: str | os.PathLike,
    tokenizer: TokenizerWriter,
    *,
    num_scenes: int | None = None,
    seed: int = 0,
    cache_folder: str | os.PathLike | None = None,
) -> TokenProbeReader:
    """
    The probe of the tokens that a tokenizer makes of a set of scenes, from the cache, or trained and put there.

    Args:
        folder (`str`): of training scenes, see [`read_scenes`].
        tokenizer ([`TokenizerWriter`]): whose tokens are read; a probe belongs to its weights and configuration.
        num_scenes (`int`, *optional*): train on the first so many.
        seed (`int`, *optional*, defaults to 0): of the training.
        cache_folder (`str`, *optional*): where probes are kept; by default vistok's cache.

    Returns:
        [`TokenProbeReader`]

    Raises:
        ValueError: if there are fewer than 20 scenes, or a probe in the cache is damaged; and as [`read_scenes`].
        BadSampleError: if an image is missing or damaged.
    """
    scenes = training_scenes(folder, num_scenes)
    known = fingerprint(tokenizer.setok.vision_model, tokenizer.image_processor, [])
    hashes = [known[name] for name in ("weights", "configuration", "processor")]

    def train() -> TokenProbeReader:
        encoded = []
        batches = range(0, len(scenes), _BATCH)
        for start in logging.tqdm(batches, desc="Reading scenes for the token probe", unit=" batches"):
            found = tokenizer.encode([scene.image.image() for scene in scenes[start : start + _BATCH]])
            encoded += [
                tokens[mask].cpu() for tokens, mask in zip(found.tokens.detach().float(), found.mask.detach().bool())
            ]
        return train_token_probe(encoded, [scene.contents for scene in scenes], seed)

    return cached_probe(
        Path(cache_folder) if cache_folder is not None else cache_dir() / "token-probes",
        [_REVISION, *hashes, seed, scenes_digest(scenes, folder)],
        TokenProbeReader.load,
        train,
    )


def train_token_probe(
    tokens: Sequence[torch.Tensor], contents: Sequence[Contents], seed: int = 0, epochs: int = EPOCHS
) -> TokenProbeReader:
    """
    Trains a probe of tokens as [`fit_probe`] does.

    Args:
        tokens (`list[torch.FloatTensor]`): of each image, `(num_tokens, token_size)`.
        contents (`list[list[dict]]`): of each image.
        seed (`int`, *optional*, defaults to 0): of everything random.
        epochs (`int`, *optional*, defaults to 40): passes over the images.

    Returns:
        [`TokenProbeReader`], whose `facts` say how the held-out tenth is read.

    Raises:
        ValueError: if there are no tokens for each image or nothing to learn, or the loss is not finite.
    """
    if len(tokens) != len(contents):
        raise ValueError(f"There are tokens of {len(tokens)} images and contents of {len(contents)}: give each both.")
    started = time.perf_counter()
    data = _TokenData(tokens, contents)

    def make(train: torch.Tensor) -> TokenContentsProbe:
        num_tokens, token_size = data.tokens.shape[1:]
        config = TokenProbeConfig(data.targets.classes, data.targets.colors, token_size, (1, num_tokens))
        probe = TokenContentsProbe(config)
        probe.standardize(data.tokens[train][data.mask[train]])
        return probe

    probe, facts = fit_probe(make, data, seed, epochs)
    return TokenProbeReader(probe, {**facts, "seconds": round(time.perf_counter() - started, 1)})


class _TokenData:
    """Tokens of all images, padded, and what is to be read in them."""

    def __init__(self, tokens: Sequence[torch.Tensor], contents: Sequence[Contents]):
        self.targets = ContentsTargets(contents)
        lengths = torch.tensor([len(of_image) for of_image in tokens])
        self.tokens = nn.utils.rnn.pad_sequence(list(tokens), batch_first=True).float()
        self.mask = torch.arange(self.tokens.shape[1]) < lengths[:, None]

    def inputs(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tokens[rows], self.mask[rows]

    def local_loss(self, densities: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return densities.new_zeros(())  # which token is of which object is not known


__all__ = [
    "TokenContentsProbe",
    "TokenProbeConfig",
    "TokenProbeReader",
    "token_probe_of_scenes",
    "train_token_probe",
]
