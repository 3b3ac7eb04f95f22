"""A probe that reads what an image shows: classes, how many of each, their colours and where they lie."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from ..modeling.atomic_folder import write_folder_atomically
from ..modeling.vision_features import FeatureLayer
from .token_sources import TokenSource, load_token_source

NO_COLOR = ""
"""What the colour of an object is called that no single name fits."""
_FIRST_DENSITY = -4.0  # before the softplus: nearly nothing anywhere
_CONFIG, _WEIGHTS = "probe.json", "probe.safetensors"
BOX_MARGIN = 0.05  # of the side of an image: what a patch at the edge of a box shows lies partly outside


@dataclass(frozen=True)
class ProbeConfig:
    """
    What a probe reads, and how.

    Args:
        classes (`tuple[str, ...]`): names of classes.
        colors (`tuple[str, ...]`): names of colours; the first is `""`, for objects that have no single one.
        tower (`str`): vision tower whose frozen features it reads: `"vistok:dinov2-small"`, a folder or a Hub id.
        layer (`int` or `"final"`): of the tower.
        tower_size (`int`): side in pixels at which the tower sees images.
        image_size (`int`): side in pixels to which images are reduced before, as a generator's are.
        feature_size (`int`): width of the features.
        grid_size (`tuple[int, int]`): height and width of images in patches.
        hidden_size (`int`, *optional*, defaults to 128): of the probe's own layers.
        dropout (`float`, *optional*, defaults to 0.3): of the features and of hidden states in training.
        thresholds (`tuple[float, ...]`, *optional*): for each class the count from which it is there.
    """

    classes: tuple[str, ...]
    colors: tuple[str, ...]
    tower: str
    layer: FeatureLayer
    tower_size: int
    image_size: int
    feature_size: int
    grid_size: tuple[int, int]
    hidden_size: int = 128
    dropout: float = 0.3
    thresholds: tuple[float, ...] = ()


class ReadingConfig(Protocol):
    """What a reading needs to know of its probe: names, thresholds, and the grid of what was read."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def colors(self) -> tuple[str, ...]: ...

    @property
    def grid_size(self) -> tuple[int, int]: ...

    @property
    def thresholds(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class ContentsReading:
    """
    What a probe reads in an image, or in its tokens, which then stand for patches.

    Args:
        densities (`torch.FloatTensor` of shape `(num_patches, num_classes)`): objects of each class by patch.
        colors (`torch.FloatTensor` of shape `(num_patches, num_colors)`): share of each colour by patch; sums to 1.
        config ([`ProbeConfig`] or alike): of the probe.
    """

    densities: torch.Tensor
    colors: torch.Tensor
    config: ReadingConfig

    @cached_property
    def shown(self) -> list[str]:
        """The classes that are there: those whose densities sum to a threshold."""
        sums = self.densities.sum(0).tolist()
        return [
            name for name, count, least in zip(self.config.classes, sums, self.config.thresholds) if count >= least
        ]

    @cached_property
    def explained(self) -> torch.Tensor:
        """Densities where only the classes that are there share what each patch holds; of others they are 0."""
        is_shown = torch.tensor([float(name in self.shown) for name in self.config.classes])
        kept = self.densities * is_shown
        shares = kept / kept.sum(1, keepdim=True).clamp_min(1e-12)
        return shares * self.densities.sum(1, keepdim=True)

    def count(self, name: str, box: Sequence[float] | None = None) -> float:
        """
        How many objects of a class there are, as a sum of densities; 0 of a class that is not shown.

        Args:
            name (`str`): of the class.
            box (`list[float]`, *optional*): x, y, width and height in sides of the image: only there, and a little
                around it.
        """
        index = self.config.classes.index(name)
        inside = _patches_in(box, self.config.grid_size)
        return float((self.explained[:, index] * inside).sum())

    def whole_count(self, name: str) -> int:
        """How many objects of a class there are; 0 only if it is not shown."""
        return max(1, round(self.count(name))) if name in self.shown else 0

    def ranked_colors(self, name: str, box: Sequence[float] | None = None) -> list[str]:
        """
        Colours of the objects of a class that have a name, the most likely first.

        Args:
            name, box: as in [`ContentsReading.count`].
        """
        index = self.config.classes.index(name)
        weights = self.explained[:, index] * _patches_in(box, self.config.grid_size)
        mass = (weights.unsqueeze(1) * self.colors).sum(0).tolist()
        named = [(value, color) for value, color in zip(mass, self.config.colors) if color != NO_COLOR]
        return [color for _, color in sorted(named, key=lambda entry: -entry[0])]


def _patches_in(box: Sequence[float] | None, grid_size: tuple[int, int]) -> torch.Tensor:
    """Which patches have their middle in a box, `(num_patches,)`; all without one."""
    height, width = grid_size
    if box is None:
        return torch.ones(height * width)
    left, top, wide, high = box
    rows, columns = ((torch.arange(length) + 0.5) / length for length in grid_size)
    # A box that is smaller than a patch lies within its own.
    margins = max(BOX_MARGIN, 0.5 / height - high / 2), max(BOX_MARGIN, 0.5 / width - wide / 2)
    in_rows = (rows >= top - margins[0]) & (rows <= top + high + margins[0])
    in_columns = (columns >= left - margins[1]) & (columns <= left + wide + margins[1])
    return (in_rows[:, None] & in_columns).flatten().float()


class DensityProbe(nn.Module):
    """
    What probes have in common: inputs that are standardised, and an output that says of each place how many objects
    it holds, which share of them each class has, and of which colour they are.

    Args:
        config ([`ProbeConfig`] or alike): names, `hidden_size`, `dropout`.
        input_size (`int`): width of what is read.
    """

    mean: torch.Tensor
    std: torch.Tensor
    config: Any

    def __init__(self, config: Any, input_size: int):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(input_size))
        self.register_buffer("std", torch.ones(input_size))
        self.dropout = nn.Dropout(config.dropout)
        self.input_projection = nn.Linear(input_size, config.hidden_size)

    def standardize(self, inputs: torch.Tensor) -> None:
        """Takes mean and deviation from what is trained on, `(number, input_size)`."""
        self.mean.copy_(inputs.float().mean(0))
        self.std.copy_(inputs.float().std(0).clamp_min(1e-3))

    def projected(self, inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states of standardised inputs, `(batch, number, hidden_size)`."""
        hidden = self.dropout((inputs.float() - self.mean) / self.std)
        return nn.functional.gelu(self.input_projection(hidden))

    def new_output(self) -> nn.Linear:
        """The last layer, which finds nearly nothing anywhere at first."""
        output = nn.Linear(self.config.hidden_size, 1 + len(self.config.classes) + len(self.config.colors))
        with torch.no_grad():
            output.bias[0] = _FIRST_DENSITY
        return output

    def densities_and_colors(self, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last layer says: densities, `(…, num_classes)`, and logits of colours, `(…, num_colors)`."""
        density, classes, colors = outputs.split([1, len(self.config.classes), len(self.config.colors)], dim=-1)
        return nn.functional.softplus(density) * classes.softmax(-1), colors


class ContentsProbe(DensityProbe):
    """
    Reads the patches of a frozen tower, and the mean colour of each patch: a linear layer, a depthwise convolution
    over 3 × 3 patches and a linear layer, then for each patch how many objects it holds (a density, so that sums are
    counts), which share of them each class has, and of which colour they are. Trained on scenes whose contents and
    masks are known.

    Args:
        config ([`ProbeConfig`]): its sizes.
    """

    config: ProbeConfig

    def __init__(self, config: ProbeConfig):
        super().__init__(config, config.feature_size)
        size = config.hidden_size
        self.neighbours = nn.Conv2d(size, size, 3, padding=1, groups=size)
        self.hidden = nn.Linear(size, size)
        self.output = self.new_output()

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`torch.FloatTensor` of shape `(batch, num_patches, feature_size)`): from [`probe_features`].

        Returns:
            `tuple` of densities, `(batch, num_patches, num_classes)`, and logits of colours, `(batch, num_patches,
            num_colors)`.
        """
        hidden = self.projected(features)
        grid = hidden.transpose(1, 2).unflatten(2, self.config.grid_size)
        hidden = hidden + self.neighbours(grid).flatten(2).transpose(1, 2)
        hidden = self.dropout(nn.functional.gelu(self.hidden(hidden)))
        return self.densities_and_colors(self.output(hidden))


def reduced(image: Image.Image, side: int) -> Image.Image:
    """
    An image as a generator of some resolution would have to draw it.

    Args:
        image (`PIL.Image.Image`): RGB.
        side (`int`): of the result, in pixels.
    """
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


@torch.no_grad()
def probe_features(images: Sequence[Image.Image], source: TokenSource, image_size: int) -> torch.Tensor:
    """
    What a probe reads of images: patch features of a frozen tower, and the mean colour of each patch.

    Args:
        images (`list[PIL.Image.Image]`): RGB.
        source ([`TokenSource`]): the tower.
        image_size (`int`): side in pixels to which images are reduced before the tower sees them.

    Returns:
        `torch.HalfTensor` of shape `(batch, num_patches, feature_size)`.
    """
    small = [reduced(image, image_size) for image in images]
    features = source.patch_features(small).cpu()
    height, width = source.grid_size
    pixels = [image.resize((width, height), Image.Resampling.BOX) for image in small]
    colours = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in pixels])
    return torch.cat([features.float(), colours.view(len(images), -1, 3).float() / 255], dim=-1).half()


AnyProbe = TypeVar("AnyProbe", bound=DensityProbe)


def save_probe(folder: str | os.PathLike, probe: DensityProbe, facts: Mapping[str, Any]) -> None:
    """
    Writes a probe, whole or not at all.

    Args:
        folder (`str`): must not exist, or be empty.
        probe ([`DensityProbe`]): trained.
        facts (`dict`): what is known of its training.
    """
    with write_folder_atomically(folder) as content:
        save_file({name: value.contiguous() for name, value in probe.state_dict().items()}, content / _WEIGHTS)
        described = {"config": asdict(probe.config), "facts": dict(facts)}
        (content / _CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def load_probe(folder: str | os.PathLike, make: Callable[..., AnyProbe]) -> tuple[AnyProbe, dict[str, Any]]:
    """
    Reads what [`save_probe`] wrote.

    Args:
        folder (`str`): of the probe.
        make (`Callable`): takes the values of the configuration by name, returns the probe with random weights.

    Returns:
        `tuple` of the probe and what is known of its training.

    Raises:
        FileNotFoundError: if there is no probe in the folder.
        ValueError: if its files are damaged.
    """
    path = Path(folder)
    if not (path / _CONFIG).is_file() or not (path / _WEIGHTS).is_file():
        raise FileNotFoundError(f"There is no probe in {path}: expected {_CONFIG} and {_WEIGHTS}.")
    try:
        described = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in described["config"].items()
        }
        probe = make(**values)
        probe.load_state_dict(load_file(path / _WEIGHTS))
        return probe, dict(described["facts"])
    except Exception as error:  # safetensors raises errors of its own
        raise ValueError(f"The probe in {path} is damaged ({error}): remove the folder, it is made again.") from error


class SavedProbe:
    """
    A trained probe, which can be saved.

    Args:
        probe ([`DensityProbe`]): trained.
        facts (`dict`, *optional*): what is known of its training, for reports.
    """

    def __init__(self, probe: Any, facts: Mapping[str, Any] | None = None):
        self.probe, self.facts = probe.eval(), dict(facts or {})

    @property
    def config(self) -> Any:
        """What it reads."""
        return self.probe.config

    def save(self, folder: str | os.PathLike) -> None:
        """
        Writes the probe, whole or not at all.

        Args:
            folder (`str`): must not exist, or be empty.
        """
        save_probe(folder, self.probe, self.facts)


class ProbeReader(SavedProbe):
    """
    A trained probe with the tower that it reads.

    Args:
        probe ([`ContentsProbe`]): trained.
        source ([`TokenSource`]): its tower.
        facts (`dict`, *optional*): what is known of its training, for reports.
    """

    def __init__(self, probe: ContentsProbe, source: TokenSource, facts: Mapping[str, Any] | None = None):
        super().__init__(probe, facts)
        self.source = source

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[ContentsReading]:
        """
        Reads images.

        Args:
            images (`list[PIL.Image.Image]`): RGB; brought to the probe's resolution.
            batch_size (`int`, *optional*, defaults to 32): images that go through the tower at once.

        Returns:
            `list[ContentsReading]`
        """
        found: list[ContentsReading] = []
        for start in range(0, len(images), batch_size):
            features = probe_features(images[start : start + batch_size], self.source, self.config.image_size)
            densities, colors = self.probe(features)
            found += [ContentsReading(*maps, self.config) for maps in zip(densities, colors.softmax(-1))]
        return found

    @classmethod
    def load(cls, folder: str | os.PathLike, device: str | torch.device = "cpu") -> "ProbeReader":
        """
        Reads a probe that was saved.

        Args:
            folder (`str`): of the probe.
            device (`str`, *optional*, defaults to `"cpu"`): where its tower runs.

        Raises:
            FileNotFoundError: if there is no probe in the folder.
            ValueError: if its files are damaged.
        """
        probe, facts = load_probe(folder, lambda **values: ContentsProbe(ProbeConfig(**values)))
        source = load_token_source(probe.config.tower, probe.config.layer, probe.config.tower_size, device)
        return cls(probe, source, facts)


__all__ = [
    "NO_COLOR",
    "ContentsProbe",
    "ContentsReading",
    "DensityProbe",
    "ProbeConfig",
    "ProbeReader",
    "ReadingConfig",
    "SavedProbe",
    "load_probe",
    "probe_features",
    "reduced",
    "save_probe",
]
