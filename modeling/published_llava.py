"""LLaVA-1.5 and VW-LMM as published: what their configs say, and what their weights are called in each layout."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlavaConfig, MistralConfig, PreTrainedConfig

from ..configuration.configuration_vtlmm import CLIP_L_336
from .checkpoint_shards import StoredTensor
from .published_checkpoints import first_line
from .trained_weights import CheckpointError

ORIGINAL_TYPES = ("llava", "llava_llama", "llava_mistral")
"""`model_type` of LLaVA's layout: one for all at first, and in VW-LMM (haotian-liu/LLaVA, llava/model/language_model;
pengts/VW-LMM, visual_words/model/language_model)."""

PUBLISHED_TOWERS = {"openai/clip-vit-large-patch14-336": CLIP_L_336}
"""Sizes of the tower that LLaVA-1.5 and VW-LMM name, whose config is not in theirs."""

# Published prefix → ours, for each layout by a prefix that no other has. The tower of LLaVA is a module around
# transformers' CLIPVisionModel, whose parts lay under `vision_model` before transformers 5.
_TOWER = "model.vision_tower."
_ADAPTER = "model.adapter.linear_"
_LANGUAGE_MODEL = "model.language_model."
_HEADS = {"lm_head.": "lm_head.", "vm_head.": "model.vm_head."}
_ORIGINAL = ""
_LAYOUTS = {
    # That of LLaVA's authors, which VW-LMM has too.
    _ORIGINAL: {
        "model.embed_tokens.": f"{_LANGUAGE_MODEL}embed_tokens.",
        "model.layers.": f"{_LANGUAGE_MODEL}layers.",
        "model.norm.": f"{_LANGUAGE_MODEL}norm.",
        "model.mm_projector.0.": f"{_ADAPTER}1.",
        "model.mm_projector.2.": f"{_ADAPTER}2.",
        "model.vision_tower.vision_tower.vision_model.": _TOWER,
        "model.vision_tower.vision_tower.": _TOWER,
        **_HEADS,
    },
    # What the Hub holds, and what transformers 5 writes by default.
    "language_model.model.": {
        "language_model.model.": _LANGUAGE_MODEL,
        "multi_modal_projector.linear_": _ADAPTER,
        "vision_tower.vision_model.": _TOWER,
        "vision_tower.": _TOWER,
        "language_model.lm_head.": "lm_head.",
        "language_model.vm_head.": "model.vm_head.",
    },
    # The names inside the model, which save_pretrained(save_original_format=False) writes.
    "model.language_model.": {
        "model.language_model.": _LANGUAGE_MODEL,
        "model.multi_modal_projector.linear_": _ADAPTER,
        "model.vision_tower.vision_model.": _TOWER,
        "model.vision_tower.": _TOWER,
        **_HEADS,
    },
}
# Buffers that older versions of transformers saved, which follow from the config.
_UNUSED = re.compile(r".*\.(rotary_emb\.inv_freq|embeddings\.position_ids)")


@dataclass(frozen=True, kw_only=True)
class PublishedLlava:
    """
    What the config of a published LLaVA or VW-LMM says.

    Args:
        text_config (`PreTrainedConfig`): of the language model, with the vocabulary as published.
        vision_config (`PreTrainedConfig`, *optional*): of the tower; not in LLaVA's layout, which names it.
        vision_tower (`str`, *optional*): the checkpoint that the tower was taken from, as the config names it.
        vision_feature_layer (`int`): index into the tower's hidden states.
        hidden_act (`str`): between the layers of the adapter.
        image_token_id (`int`, *optional*): id of the placeholder; `None` in LLaVA's layout, which has -200 for it,
            an id without embedding (haotian-liu/LLaVA, llava/constants.py).
        pad_to_square (`bool`): whether images are padded to a square with the mean colour; those of LLaVA-1.5 are,
            which the config of transformers' layout does not say.
        pseudo_image_features (`bool`): whether the architecture's name says that it is fed these (VT-LMM, Eq. 8).
    """

    text_config: PreTrainedConfig
    vision_config: PreTrainedConfig | None = None
    vision_tower: str | None = None
    vision_feature_layer: int = -2
    hidden_act: str = "gelu"
    image_token_id: int | None = None
    pad_to_square: bool = True
    pseudo_image_features: bool = False


def read_published_config(folder: Path) -> PublishedLlava:
    """
    Reads the config of a published LLaVA or VW-LMM.

    Args:
        folder (`Path`): holds `config.json`.

    Raises:
        FileNotFoundError: if there is no config.
        CheckpointError: if it is that of another model, or of a LLaVA that VT-LMM does not compute; names the field.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the folder of a published LLaVA-1.5 or VW-LMM.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or no config ({first_line(error)}): download it anew.") from error
    if found == "llava" and "text_config" in config:
        return _of_transformers(path, config)
    if found in ORIGINAL_TYPES and "mm_vision_tower" in config:
        return _of_original(path, config)
    raise CheckpointError(
        f"{path} has model_type {found!r} and is no config of LLaVA-1.5 or VW-LMM: expected model_type "
        f"{' or '.join(ORIGINAL_TYPES)} with mm_vision_tower (LLaVA's layout) or text_config (transformers' layout)."
    )


def _of_transformers(path: Path, config: Mapping[str, Any]) -> PublishedLlava:
    llava: Any = LlavaConfig.from_dict(dict(config))
    if not isinstance(llava.vision_feature_layer, int) or llava.vision_feature_select_strategy != "default":
        raise CheckpointError(
            f"{path} has vision_feature_layer {llava.vision_feature_layer} and vision_feature_select_strategy "
            f"{llava.vision_feature_select_strategy!r}: LLaVA-1.5 reads the patches of one layer, without [CLS]."
        )
    return PublishedLlava(
        text_config=llava.text_config,
        vision_config=llava.vision_config,
        vision_feature_layer=llava.vision_feature_layer,
        hidden_act=llava.projector_hidden_act,
        image_token_id=llava.image_token_index,
    )


# Field of LLaVA's config → what stands for it where it is missing, values that VT-LMM computes, what others are
# (haotian-liu/LLaVA, llava/model/llava_arch.py and llava/model/multimodal_projector/builder.py).
_EXPECTED: dict[str, tuple[Any, tuple, str]] = {
    "mm_projector_type": ("linear", ("mlp2x_gelu",), "the adapter of LLaVA-1.5 and VW-LMM is mlp2x_gelu"),
    "mm_use_im_start_end": (False, (False,), "only the first LLaVA has tokens around images"),
    "mm_vision_select_feature": ("patch", ("patch",), "LLaVA-1.5 and VW-LMM read patches, without [CLS]"),
    "image_aspect_ratio": (None, (None, "square", "pad"), "several crops of an image are those of LLaVA-1.6"),
}


def _of_original(path: Path, config: Mapping[str, Any]) -> PublishedLlava:
    for name, (default, known, meaning) in _EXPECTED.items():
        if (value := config.get(name, default)) not in known:
            raise CheckpointError(f"{path} has {name} {value!r}, which VT-LMM does not compute: {meaning}.")
    architecture = next(iter(config.get("architectures") or []), "")
    return PublishedLlava(
        text_config=_text_config(config, architecture),
        vision_tower=config["mm_vision_tower"],
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        pad_to_square=config.get("image_aspect_ratio") == "pad",
        pseudo_image_features="pif" in architecture.lower(),
    )


# Fields of a language model that its own class of configs does not add.
_COMMON_FIELDS = {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "rope_theta", "rope_scaling"}


def _text_config(config: Mapping[str, Any], architecture: str) -> PreTrainedConfig:
    """
    The fields of the language model among those of LLaVA. `model_type` does not tell Llama from Mistral in VW-LMM; the
    architecture's name does, and `sliding_window`, which only configs of Mistral hold.
    """
    names = f"{architecture} {config['model_type']}".lower()
    config_class: Any = MistralConfig if "mistral" in names or "sliding_window" in config else LlamaConfig
    fields = set(config_class.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) | _COMMON_FIELDS
    return config_class.from_dict({name: value for name, value in config.items() if name in fields})


class PublishedNames:
    """
    What becomes of each weight of a published LLaVA or VW-LMM.

    Args:
        stored (`dict[str, StoredTensor]`): the weights by published name.

    Attributes:
        published (`dict[str, str]`): name in [`VTLMMForCausalLM`] → published name.
        own (`dict[str, str]`): the other way round, in the order of `stored`.
        dropped (`list[str]`): published names of weights without use.
        unknown (`list[str]`): published names that are not known in this layout.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]):
        self.stored = stored
        marks = [mark for mark in _LAYOUTS if mark != _ORIGINAL and any(name.startswith(mark) for name in stored)]
        self._prefixes = _LAYOUTS[marks[0] if marks else _ORIGINAL]
        self.published: dict[str, str] = {}
        self.dropped: list[str] = []
        self.unknown: list[str] = []
        for name in stored:
            own = self._own_name(name)
            if _UNUSED.fullmatch(name):
                self.dropped.append(name)
            elif own is None or own in self.published:
                self.unknown.append(name)
            else:
                self.published[own] = name
        self.own = {name: own for own, name in self.published.items()}

    def _own_name(self, name: str) -> str | None:
        for published, own in self._prefixes.items():
            if name.startswith(published):
                return own + name.removeprefix(published)
        return None

    def stored_of(self, own: str) -> StoredTensor | None:
        """What is stored of a weight of [`VTLMMForCausalLM`]; `None` if the checkpoint lacks it."""
        return self.stored[self.published[own]] if own in self.published else None

    def published_of(self, own: str) -> str:
        """The published name of a weight of [`VTLMMForCausalLM`], in the manner of this checkpoint if it lacks it."""
        if own in self.published:
            return self.published[own]
        prefixes = self._prefixes.items()
        names = [published + own.removeprefix(prefix) for published, prefix in prefixes if own.startswith(prefix)]
        in_manner = any(".vision_model." in name for name in self.stored)
        fitting = [name for name in names if (".vision_model." in name) == in_manner]
        return next(iter(fitting or names), own)


def has_vocabulary_rows(name: str) -> bool:
    """Whether a weight of [`VTLMMForCausalLM`] has a row for each token of the vocabulary."""
    return name in (f"{_LANGUAGE_MODEL}embed_tokens.weight", "lm_head.weight", "model.vm_head.weight")


__all__ = [
    "PUBLISHED_TOWERS",
    "PublishedLlava",
    "PublishedNames",
    "has_vocabulary_rows",
    "read_published_config",
]
