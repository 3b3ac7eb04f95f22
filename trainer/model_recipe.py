"""What a recipe composes its model of, and how that model is made or loaded."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from ..hub_cards.card_facts import is_hub_id
from ..modeling.base_weights import PREFIX
from ..modeling.modeling_gvt import GVTForConditionalGeneration
from ..modeling.modeling_setokim import SetokimForConditionalGeneration
from ..modeling.modeling_vtlmm import VTLMMForCausalLM
from ..processing.processing_gvt import GVTProcessor
from ..processing.processing_setokim import SetokimProcessor
from ..processing.processing_vtlmm import VTLMMProcessor
from ..processing.square_images import prepared_side

DEFAULT_VISION, DEFAULT_TEXT = "vistok:dinov2-small", "vistok:smollm2-135m"


@dataclass(frozen=True)
class ModelKind:
    """
    A kind of model that a recipe may train.

    Args:
        model_class, processor_class (`type`): its classes.
        tokenizer (`str`): the recipe's section for its visual tokenizer: `"resampler"`, `"adapter"` or `"setok"`.
        one_token_per_patch (`bool`, *optional*, defaults to `False`): whether the number of visual tokens follows the
            size of images, and nothing else.
        switches (`tuple[str, ...]`, *optional*): fields of its config that a checkpoint may be loaded with otherwise.
        trained_part (`str`, *optional*): what is trained where a recipe does not say so; by default the tokenizer.
    """

    model_class: Any
    processor_class: Any
    tokenizer: str
    one_token_per_patch: bool = False
    switches: tuple[str, ...] = ()
    trained_part: str | None = None


KINDS = {
    "gvt": ModelKind(GVTForConditionalGeneration, GVTProcessor, "resampler"),
    "vtlmm": ModelKind(VTLMMForCausalLM, VTLMMProcessor, "adapter", True, ("pseudo_image_features",)),
    "setokim": ModelKind(
        SetokimForConditionalGeneration,
        SetokimProcessor,
        "setok",
        switches=("visual_loss_weight", "length_loss_weight"),
        trained_part="projections",
    ),
}


@dataclass
class ModelRecipe:
    """
    What the model is composed of.

    Args:
        vision, text (`str`, *optional*): base models: names of vistok, folders or Hub ids. By default the small ones
            of `vistok fetch`, or those of the checkpoint.
        kind (`str`): `"gvt"`, `"vtlmm"` or `"setokim"`; by default the kind that the trainer of the recipe is for.
        checkpoint (`str`, *optional*):
            Starts from the model in this folder. What `vision`, `text`, `config`, `resampler`, `adapter` and `setok`
            say must then be true of it; but `pseudo_image_features`, or weights of losses, of the config are switched
            as they say.
        dtype (`str`, *optional*): of the frozen weights; by default that of the language model.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
        image_size (`int`, *optional*): side of the images in pixels; by default what the tower's processor says.
        chat_template (`str`, *optional*): name of a chat template, or Jinja; by default `"question-answer"`, or that
            of the checkpoint.
        processor (`dict`): further arguments of the processor.
        config (`dict`): fields of the model's config.
        resampler (`dict`): of `gvt`: fields of the visual tokenizer's config.
        adapter (`dict`): the same of `vtlmm`.
        setok (`dict`): the same of `setokim`: of [`SeTokConfig`].
    """

    vision: str | None = None
    text: str | None = None
    kind: str = "gvt"
    checkpoint: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    image_size: int | None = None
    chat_template: str | None = None
    processor: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    resampler: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    setok: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of model: choose {', '.join(KINDS)}.")
        for section in {kind.tokenizer for kind in KINDS.values()} - {KINDS[self.kind].tokenizer}:
            if getattr(self, section):
                raise ValueError(
                    f"model.{section} is none of {self.kind}, whose visual tokenizer is described under "
                    f"model.{KINDS[self.kind].tokenizer}."
                )
        if self.checkpoint is None:
            self.vision, self.text = self.vision or DEFAULT_VISION, self.text or DEFAULT_TEXT

    @property
    def starts_from(self) -> str | None:
        """The folder of an earlier run that this one starts from: its checkpoint, or else the SeTok of a Setokim."""
        if self.checkpoint is not None or self.kind != "setokim":
            return self.checkpoint
        vision = str(self.vision)
        is_elsewhere = vision.startswith(PREFIX) or is_hub_id(vision)
        return None if is_elsewhere and not os.path.isdir(vision) else vision


def build_model(recipe: ModelRecipe) -> tuple[Any, Any]:
    """
    Composes the model of a recipe and its processor, or loads both from its checkpoint.

    Args:
        recipe ([`ModelRecipe`]): what to compose.

    Returns:
        The model and its processor.

    Raises:
        ValueError: if the dtype is unknown, or the checkpoint is another model than the recipe describes.
    """
    dtype = getattr(torch, recipe.dtype, None) if recipe.dtype else None
    if recipe.dtype and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype of the model is {recipe.dtype!r}, expected one such as 'bfloat16' or 'float32'.")
    if recipe.checkpoint is not None or recipe.vision is None or recipe.text is None:  # without one, both are set
        return _load_checkpoint(recipe, dtype)
    kind = KINDS[recipe.kind]
    sized = {"image_size": recipe.image_size} if kind.one_token_per_patch else {}
    model = kind.model_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        dtype=dtype,
        attn_implementation=recipe.attn_implementation,
        **recipe.config,
        **{f"{kind.tokenizer}_config": getattr(recipe, kind.tokenizer)},
        **sized,
    )
    counted = {} if kind.one_token_per_patch else {"num_image_tokens": model.model.visual_tokenizer.max_num_tokens}
    processor = kind.processor_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        image_size=recipe.image_size,
        chat_template=recipe.chat_template,
        **{**counted, **recipe.processor},
    )
    return model, processor


def _load_checkpoint(recipe: ModelRecipe, dtype: torch.dtype | None) -> tuple[Any, Any]:
    kind = KINDS[recipe.kind]
    options = {"dtype": dtype, "attn_implementation": recipe.attn_implementation}
    options |= {name: recipe.config[name] for name in kind.switches if name in recipe.config}
    try:
        model = kind.model_class.from_pretrained(
            recipe.checkpoint, **{name: value for name, value in options.items() if value is not None}
        )
    except OSError as error:
        if os.path.isdir(str(recipe.checkpoint)):
            raise
        where = "neither here nor on the Hub" if is_hub_id(str(recipe.checkpoint)) else "not here"
        raise FileNotFoundError(
            f"model.checkpoint is {recipe.checkpoint}, which is {where}: run the recipe that leaves this folder first."
        ) from error
    tokenizer_config = getattr(model.config, f"{kind.tokenizer}_config")
    parts = {
        "config": (recipe.config, model.config),
        kind.tokenizer: (getattr(recipe, kind.tokenizer), tokenizer_config),
    }
    for section, (fields, config) in parts.items():
        for name, value in fields.items():
            found = getattr(config, name, None)
            if found != value:
                raise _is_otherwise(recipe, f"{section}.{name}", value, found)
    for part in ("vision", "text"):
        value, found = getattr(recipe, part), (model.config.base_models or {}).get(part)
        if value is not None and (found is None or os.path.realpath(found) != os.path.realpath(value)):
            raise _is_otherwise(recipe, part, value, found)
    processor = kind.processor_class.from_pretrained(recipe.checkpoint, **recipe.processor)
    if recipe.chat_template is not None:
        processor.chat_template = processor.named_chat_template(recipe.chat_template)
    if recipe.image_size is not None and kind.one_token_per_patch:
        found = prepared_side(processor.image_processor)
        if found != recipe.image_size:  # the number of placeholders follows it
            raise _is_otherwise(recipe, "image_size", recipe.image_size, found)
    elif recipe.image_size is not None:
        processor.image_processor.size = {"height": recipe.image_size, "width": recipe.image_size}
    return model, processor


def _is_otherwise(recipe: ModelRecipe, name: str, value: Any, found: Any) -> ValueError:
    return ValueError(
        f"model.{name} is {value!r}, but {recipe.checkpoint} has {found!r}: leave it out of the recipe, or start from "
        "the base models."
    )


__all__ = ["KINDS", "ModelKind", "ModelRecipe", "build_model"]
