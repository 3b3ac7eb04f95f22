"""What a recipe composes its model of, and how that model is made or loaded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlavaProcessor, TrainingArguments

from ..hub_cards.card_facts import is_hub_id
from ..modeling.base_weights import PREFIX, resolve_checkpoint, shipped_checkpoint
from ..modeling.modeling_gvt import GVTForConditionalGeneration
from ..modeling.modeling_setok_llava import SeTokLlavaForConditionalGeneration
from ..modeling.modeling_setokim import SetokimForConditionalGeneration
from ..modeling.modeling_vtlmm import VTLMMForCausalLM
from ..modeling.vision_features import feature_grid
from ..processing.chat_templates import get_chat_template
from ..processing.composed_llava_processor import compose_llava_processor
from ..processing.processing_gvt import GVTProcessor
from ..processing.processing_setokim import SetokimProcessor
from ..processing.processing_vtlmm import VTLMMProcessor
from ..processing.square_images import prepared_side
from .quantized_training import check_quantization, quantization_options

DEFAULT_VISION, DEFAULT_TEXT = "vistok:dinov2-small", "vistok:smollm2-135m"


@dataclass(frozen=True)
class ModelKind:
    """
    A kind of model that a recipe may train.

    Args:
        model_class, processor_class (`type`): its classes.
        tokenizer (`str`): the recipe's section for its visual tokenizer: `"resampler"`, `"adapter"` or `"setok"`.
        one_token_per_patch (`bool`, *optional*, defaults to `False`): whether the number of placeholders follows the
            size of images, unless the visual tokenizer is another than its usual one.
        switches (`tuple[str, ...]`, *optional*): fields of its config that a checkpoint may be loaded with otherwise.
        trained_part (`str`, *optional*): what is trained where a recipe does not say so; by default the tokenizer.
    """

    model_class: Any
    processor_class: Any
    tokenizer: str
    one_token_per_patch: bool = False
    switches: tuple[str, ...] = ()
    trained_part: str = ""

    def __post_init__(self):
        object.__setattr__(self, "trained_part", self.trained_part or self.tokenizer)


_LLAVA_PROCESSOR = SimpleNamespace(
    from_pretrained=LlavaProcessor.from_pretrained, from_vision_text_pretrained=compose_llava_processor
)

KINDS = {
    "gvt": ModelKind(GVTForConditionalGeneration, GVTProcessor, "resampler"),
    "vtlmm": ModelKind(VTLMMForCausalLM, VTLMMProcessor, "adapter", True, ("pseudo_image_features",)),
    "setok_llava": ModelKind(
        SeTokLlavaForConditionalGeneration,
        _LLAVA_PROCESSOR,
        "setok",
        one_token_per_patch=True,
        trained_part="projector",
    ),
    "setokim": ModelKind(
        SetokimForConditionalGeneration,
        SetokimProcessor,
        "setok",
        switches=("visual_loss_weight", "length_loss_weight", "choice_loss_weight"),
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
        kind (`str`): `"gvt"`, `"vtlmm"`, `"setok_llava"` or `"setokim"`; by default the kind that the trainer of the
            recipe is for.
        llava (`str`, *optional*): of `setok_llava`, in place of `vision` and `text`: the LLaVA that SeTok is plugged
            into, a folder or Hub id.
        checkpoint (`str`, *optional*):
            Starts from the model in this folder, or that ships with vistok (`vistok:vtlmm-demo`). What `vision`,
            `text`, `config` and its visual tokenizer's section say must then be true of it; but
            `pseudo_image_features`, or weights of losses, of the config are switched as they say.
        dtype (`str`, *optional*): of the frozen weights; by default that of the language model.
        attn_implementation (`str` or `dict`, *optional*): as in `from_pretrained`: of all parts, or by part, such as
            `{text_config: eager}`.
        load_in_4bit, load_in_8bit (`bool`, *optional*, defaults to `False`):
            Quantises the vision tower and the language model with bitsandbytes, but for what is trained in full: in 4
            bits as NF4, or in 8. With `lora` for these parts, that is QLoRA.
        quantization (`dict`): further fields of `BitsAndBytesConfig`, such as `bnb_4bit_use_double_quant`.
        image_size (`int`, *optional*): side of the images in pixels; by default what the tower's processor says.
        chat_template (`str`, *optional*): name of a chat template, or Jinja; by default `"question-answer"`, or that
            of the checkpoint.
        processor (`dict`): further arguments of the processor.
        config (`dict`): fields of the model's config.
        resampler (`dict`): of `gvt`: fields of the visual tokenizer's config.
        adapter (`dict`): the same of `vtlmm`.
        setok (`dict`): the same of `setok_llava`, and of `setokim`: of [`SeTokConfig`].
    """

    vision: str | None = None
    text: str | None = None
    kind: str = "gvt"
    llava: str | None = None
    checkpoint: str | None = None
    dtype: str | None = None
    attn_implementation: str | dict[str, str] | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    quantization: dict[str, Any] = field(default_factory=dict)
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
        check_quantization(self.load_in_4bit, self.load_in_8bit, self.quantization)
        for section in {kind.tokenizer for kind in KINDS.values()} - {KINDS[self.kind].tokenizer}:
            if getattr(self, section):
                raise ValueError(
                    f"model.{section} is none of {self.kind}, whose visual tokenizer is described under "
                    f"model.{KINDS[self.kind].tokenizer}."
                )
        if self.llava is not None:
            self._check_llava()
        elif self.checkpoint is None:
            self.vision, self.text = self.vision or DEFAULT_VISION, self.text or DEFAULT_TEXT

    def _check_llava(self) -> None:
        if self.kind != "setok_llava":
            raise ValueError(f"model.llava is what SeTok is plugged into: give kind: setok_llava, not {self.kind}.")
        others = [name for name in ("vision", "text", "checkpoint", "config") if getattr(self, name)]
        if others:
            raise ValueError(f"model.{others[0]} does not go with model.llava, which says it already: leave one out.")

    @property
    def starts_from(self) -> str | None:
        """The folder, of an earlier run or that ships, that this one starts from: its checkpoint, or else the SeTok
        of a Setokim."""
        if self.checkpoint is not None or self.kind != "setokim":
            return self.checkpoint
        vision = str(self.vision)
        if shipped := shipped_checkpoint(vision):
            return str(shipped)
        is_elsewhere = vision.startswith(PREFIX) or is_hub_id(vision)
        return None if is_elsewhere and not os.path.isdir(vision) else vision


def build_model(
    recipe: ModelRecipe, trainable: Mapping[str, str] | None = None, args: TrainingArguments | None = None
) -> tuple[Any, Any]:
    """
    Composes the model of a recipe and its processor, or loads both from its checkpoint.

    Args:
        recipe ([`ModelRecipe`]): what to compose.
        trainable (`dict[str, str]`, *optional*): how each part will be trained: what is trained in full is not
            quantised.
        args (`TrainingArguments`, *optional*): of the run: a quantised model is loaded where it runs.

    Returns:
        The model and its processor.

    Raises:
        ValueError: if the dtype is unknown, the checkpoint is another model than the recipe describes, or the model
            cannot be quantised as the recipe says.
        ImportError: if it is to be quantised and bitsandbytes is not installed; names the extra.
    """
    dtype = getattr(torch, recipe.dtype, None) if recipe.dtype else None
    if recipe.dtype and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype of the model is {recipe.dtype!r}, expected one such as 'bfloat16' or 'float32'.")
    kind = KINDS[recipe.kind]
    options = {"dtype": dtype, "attn_implementation": recipe.attn_implementation}
    options = {name: value for name, value in options.items() if value is not None}
    options |= quantization_options(recipe, kind.model_class, trainable or {}, args)
    if recipe.llava is not None:
        return _plug_into(recipe, options)
    if recipe.checkpoint is not None or recipe.vision is None or recipe.text is None:  # without one, both are set
        return _load_checkpoint(recipe, options)
    sized = {"image_size": recipe.image_size} if kind.one_token_per_patch else {}
    model = kind.model_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        **options,
        **recipe.config,
        **{f"{kind.tokenizer}_config": getattr(recipe, kind.tokenizer)},
        **sized,
    )
    tokenizer = model.model.visual_tokenizer
    # How many patches there are, the processor of a kind with one token for each finds out itself, unless they are
    # those of a stage of a convolutional network.
    has_stages = kind.one_token_per_patch and getattr(model.config.vision_config, "hidden_sizes", None)
    counts_patches = (tokenizer.one_token_per_patch and not has_stages) or recipe.kind == "setok_llava"
    counted = {} if counts_patches else {"num_image_tokens": tokenizer.max_num_tokens}
    processor = kind.processor_class.from_vision_text_pretrained(
        recipe.vision,
        recipe.text,
        image_size=recipe.image_size,
        chat_template=recipe.chat_template,
        **{**counted, **recipe.processor},
    )
    if tokenizer.one_token_per_patch and not kind.one_token_per_patch and "num_image_tokens" not in recipe.processor:
        processor.num_image_tokens = _num_patches(model, processor)
    return model, processor


def _num_patches(model: Any, processor: Any) -> int:
    """How many patches images have, for a processor that does not count them itself."""
    side = prepared_side(processor.image_processor)
    if side is None or model.config.vision_feature_select_strategy != "default":
        raise ValueError(
            "With a visual token for each patch, images need one size and [CLS] is to be dropped: set "
            "model.image_size, and model.config.vision_feature_select_strategy to default."
        )
    height, width = feature_grid(model.config.vision_config, (side, side), model.config.vision_feature_layer)
    return height * width


def _plug_into(recipe: ModelRecipe, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """SeTok behind the projector of the recipe's LLaVA, and LLaVA's own processor."""
    llava = str(recipe.llava)
    model = SeTokLlavaForConditionalGeneration.from_llava_pretrained(
        llava, recipe.setok, **{"dtype": "auto", **options}
    )
    processor = LlavaProcessor.from_pretrained(llava, **recipe.processor)
    if recipe.chat_template is not None:
        processor.chat_template = get_chat_template(recipe.chat_template, processor.image_token)
    found = prepared_side(processor.image_processor)
    if recipe.image_size is not None and found != recipe.image_size:
        raise ValueError(f"model.image_size is {recipe.image_size}, but {llava} reads {found} pixels: leave it out.")
    return model, processor


def _load_checkpoint(recipe: ModelRecipe, options: Mapping[str, Any]) -> tuple[Any, Any]:
    kind = KINDS[recipe.kind]
    switches = {name: recipe.config[name] for name in kind.switches if recipe.config.get(name) is not None}
    checkpoint = resolve_checkpoint(str(recipe.checkpoint))
    try:
        model = kind.model_class.from_pretrained(checkpoint, **options, **switches)
    except OSError as error:
        if os.path.isdir(checkpoint):
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
    processor = kind.processor_class.from_pretrained(checkpoint, **recipe.processor)
    if recipe.chat_template is not None:
        named = getattr(processor, "named_chat_template", None)
        processor.chat_template = (
            named(recipe.chat_template) if named else get_chat_template(recipe.chat_template, processor.image_token)
        )
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
