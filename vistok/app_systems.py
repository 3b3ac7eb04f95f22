"""The systems that `vistok app` offers: which there are, what each answers, and what it shows of an image."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from .answering import answer_question, explained_hub_errors, load_pipeline, model_folder, quiet_loading
from .configuration.shipped import shipped_path
from .evaluation.attention_maps import draw_query_attention, query_attention, seen_image
from .evaluation.processes import Share, local_device
from .evaluation.token_maps import TokenMap, model_token_map, read_token_maps
from .evaluation.token_pictures import token_picture
from .evaluation.token_sources import load_token_source
from .evaluation.token_variants import TokenVariant
from .evaluation.word_map import read_word_map
from .evaluation.word_map_picture import word_picture
from .evaluation.word_reference import mean_distribution

TOWER = "vistok:dinov2-small"
"""Whose patches SeTok clusters where no trained one is there."""


@dataclass(frozen=True)
class System:
    """
    A system that can be chosen.

    Args:
        name (`str`): what the choice is called.
        about (`str`): what it makes of an image, in a sentence.
        model (`str`, *optional*): folder, Hub id or name of base weights; `None` where there is none to load.
        missing (`str`): what to do where there is none.
    """

    name: str
    about: str
    model: str | None
    missing: str = ""


class Look(NamedTuple):
    """What a system saw in an image, as a picture (`None` where it has nothing to show) and in words."""

    picture: Image.Image | None
    caption: str


class _Shipped(NamedTuple):
    name: str
    about: str
    checkpoint: str
    recipes: str
    folder: str
    fallback: str | None = None


_SHIPPED = (
    _Shipped(
        "GVT",
        "A few learned queries gather what a frozen language model reads of the image; the picture shows where they "
        "look.",
        "checkpoints/gvt-demo",
        "vistok train recipes/gvt/demo.yaml",
        "runs/gvt-demo",
    ),
    _Shipped(
        "VT-LMM",
        "Each patch of the image becomes a distribution over the words of the language model; the picture shows the "
        "word by which each stands out.",
        "checkpoints/vtlmm-demo",
        "vistok train recipes/vtlmm/demo/{1-alignment,2-instruction,3-visual-tokens,4-visual-modeling}.yaml",
        "runs/vtlmm-demo/4-visual-modeling",
    ),
    _Shipped(
        "SeTok",
        "Patches are clustered into as many semantic tokens as the image needs; the picture shows them. A tokenizer "
        "alone has no language model, so it shows and does not answer.",
        "checkpoints/setok-demo",
        "vistok train recipes/setok/demo/{1a-boundaries,1b-decoders,1c-reconstruction,1d-details}.yaml",
        "runs/setok-demo/1d-details",
        fallback=TOWER,
    ),
    _Shipped(
        "Setokim",
        "A language model that reads the semantic tokens of SeTok; the picture shows them.",
        "checkpoints/setokim-demo",
        "vistok train recipes/setokim/demo/{1-reading,2-pretraining,3-instruction}.yaml",
        "runs/setokim-demo/3-instruction",
    ),
)


def offered_systems(models: Sequence[str | os.PathLike] = ()) -> list[System]:
    """
    The systems to choose from: models that are named, then those of vistok, whether their checkpoints ship or not.

    Args:
        models (`list[str]`, *optional*): folders or Hub ids.

    Returns:
        `list[System]`: no two of one name.

    Raises:
        FileNotFoundError, OSError: if one that is named does not exist: see [`model_folder`].
    """
    named: dict[str, System] = {}
    for model in [str(model) for model in models]:
        folder = model_folder(model)
        name = Path(model).name if Path(model).name not in named else model
        named[name] = System(name, f"The model {model}.", folder)
    own = [_own_system(shipped) for shipped in _SHIPPED]
    return [*named.values(), *(system for system in own if system.name not in named)]


def _own_system(shipped: _Shipped) -> System:
    try:
        model: str | None = str(shipped_path(shipped.checkpoint))
    except FileNotFoundError:
        model = shipped.fallback
    missing = (
        f"This version of vistok ships no trained {shipped.name}. Train one with `{shipped.recipes}` and start the "
        f"app with `vistok app --model {shipped.folder}`; any folder or Hub id of yours works too."
    )
    return System(shipped.name, shipped.about, model, "" if model else missing)


class LoadedSystem:
    """
    A system with its weights, loaded when it is first needed.

    Args:
        system ([`System`]): one with a model.
        device (`str`, *optional*): where it runs; by default a GPU if there is one.
    """

    def __init__(self, system: System, device: str | None = None):
        if system.model is None:
            raise ValueError(system.missing)
        self.system, self.device = system, device

    @cached_property
    def answers(self) -> bool:
        """Whether there is a language model in it."""
        with explained_hub_errors(self._model):
            config = AutoConfig.from_pretrained(model_folder(self._model))
        return type(config) in AutoModelForImageTextToText._model_mapping

    def answer(self, image: Image.Image, question: str, earlier: Sequence[tuple[str, str]] = ()) -> str:
        """See [`answer_question`]."""
        return answer_question(self._pipeline, image, question, earlier=earlier)

    def look(self, image: Image.Image, question: str = "", answer: str = "") -> Look:
        """
        What the system sees in an image.

        Args:
            image (`PIL.Image.Image`): RGB.
            question, answer (`str`, *optional*): written beside the maps of attention.

        Returns:
            [`Look`]: maps of attention of a model whose tokenizer has queries, words of one that has a visual
            modelling head, clusters of one that makes semantic tokens.
        """
        if not self.answers:
            source = self._token_source
            variant = TokenVariant(source.name, label=source.model.tokenizer.config.method)
            (clusters,) = read_token_maps(image, [variant], {(source.name, None): source})
            untrained = "" if source.is_trained else f", from {source.name} without any training"
            return Look(token_picture(clusters), _counted(clusters) + untrained + ".")
        model, processor = self._pipeline.model, self._pipeline.processor
        if hasattr(model, "get_visual_tokens"):
            return self._words(model, processor, image)
        if hasattr(getattr(model, "model", None), "visual_tokenizer"):
            token_map = model_token_map(model, processor, image)
            if token_map is not None:
                return Look(token_picture(token_map), _counted(token_map) + ".")
            return self._attention(model, processor, image, question, answer)
        return Look(None, f"{type(model).__name__} has no visual tokens that could be shown.")

    def _words(self, model: Any, processor: Any, image: Image.Image) -> Look:
        # The most probable word is a punctuation mark nearly everywhere.
        reference = mean_distribution(model, processor, [image], described="this image")
        word_map = read_word_map(model, processor, image, reference=reference)
        rows, columns = word_map.grid_size
        caption = (
            f"The word by which each of {rows} × {columns} patches stands out against the others; the more orange, "
            "the more it does."
        )
        if not getattr(model.config, "vm_head_trained", True):
            caption += " The visual modelling head of this model is untrained: the words are random."
        return Look(word_picture(word_map, shading=True), caption)

    def _attention(self, model: Any, processor: Any, image: Image.Image, question: str, answer: str) -> Look:
        attention = query_attention(model, processor, image)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "attention.png"
            draw_query_attention(
                seen_image(model, processor, image), attention, file, question=question, answer=answer
            )
            with Image.open(file) as drawn:
                picture = drawn.convert("RGB")
        return Look(picture, f"Where the {attention.shape[1]} queries look; the brighter, the more attention.")

    @property
    def _model(self) -> str:
        return str(self.system.model)

    @cached_property
    def _pipeline(self) -> Any:
        loaded = load_pipeline(self._model)
        loaded.model.to(self._placed())
        loaded.device = loaded.model.device
        return loaded

    @cached_property
    def _token_source(self) -> Any:
        with quiet_loading(), explained_hub_errors(self._model):
            return load_token_source(self._model, device=self._placed())

    def _placed(self) -> str:
        return self.device or str(local_device(Share()))


def _counted(token_map: TokenMap) -> str:
    rows, columns = token_map.grid_size
    number = f"{token_map.num_tokens} semantic token" + "s" * (token_map.num_tokens != 1)
    counted = f"{number} of {rows} × {columns} = {rows * columns} patches"
    if token_map.weights is None:
        return counted
    return (
        f"{counted}, of which each is a part of all tokens (soft assignment): outlined is where a token has the "
        f"largest weight, {token_map.mean_largest_weight:.2f} on average"
    )


__all__ = ["LoadedSystem", "Look", "System", "offered_systems"]
