"""GVT: vision tower → visual tokenizer → projector → language model."""

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils import torch_compilable_check
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_gvt import GVTConfig
from .attention_masks import decoder_arguments, mask_unused_placeholders, positions_from_mask
from .composition import ComposedPreTrainedModel
from .language_head import build_language_head, scale_logits
from .outputs_gvt import GVTImageFeatures, GVTOutput
from .vision_features import build_vision_tower, cached_vision_features, extract_vision_features
from .visual_tokenizer import VisionFeatures, computing_dtype


class GVTPreTrainedModel(ComposedPreTrainedModel):
    config: GVTConfig
    config_class = GVTConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["PerceiverResamplerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The parts that a training recipe may freeze, train or adapt, by the name it uses for them.
    trainable_parts = {
        "vision": "model.vision_tower",
        "resampler": ("model.resampler", "model.projector"),
        "llm": ("model.language_model", "lm_head"),
    }


class GVTModel(GVTPreTrainedModel):
    """
    Vision tower, visual tokenizer, projector and language model, without a head (GVT, Figure 2).

    Args:
        config ([`GVTConfig`]): the visual tokenizer is built from `config.resampler_config` by its `model_type`.

    Raises:
        ValueError: if the image placeholder is no token of the language model; names both numbers.
    """

    def __init__(self, config: GVTConfig):
        super().__init__(config)
        config.check_image_token()
        self.vision_tower = build_vision_tower(config.vision_config)
        self.resampler = AutoModel.from_config(config.resampler_config)
        if config.is_encoder_decoder:
            # With its head: encoder-decoder models scale their states before the head, and generate by themselves.
            language_model = AutoModelForSeq2SeqLM.from_config(config.text_config)
        else:
            language_model = AutoModel.from_config(config.text_config)
        # The width of embeddings, which in some models (OPT-350m) is not that of the states.
        text_width = language_model.get_input_embeddings().weight.shape[-1]
        self.projector = nn.Linear(self.resampler.output_size, text_width)
        self.language_model = language_model
        self._takes_position_ids = "position_ids" in inspect.signature(language_model.forward).parameters
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> GVTImageFeatures:
        """
        Encodes images into projected visual tokens.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                Images, normalised as the tower expects.
            vision_features (`torch.FloatTensor` of shape `(num_images, num_patches, vision_hidden_size)`, *optional*):
                Features of a frozen tower computed earlier (see [`GVTModel.get_vision_features`]), in place of images.
            output_attentions (`bool`, *optional*): whether to return the visual tokenizer's attention maps.

        Returns:
            [`GVTImageFeatures`].

        Raises:
            ValueError: unless exactly one of `pixel_values` and `vision_features` is given; or if the visual tokenizer
                reads more than these features.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("get_image_features takes pixel_values or vision_features, and exactly one of them.")
        if vision_features is not None:
            features = cached_vision_features(
                vision_features, self.config.vision_feature_select_strategy, self.resampler
            )
        elif pixel_values is not None:
            features = self.get_vision_features(pixel_values)
        names = {"grid_size", "num_prefix_tokens", *self.resampler.required_inputs}
        visual_tokens = self.resampler(
            features.patch_features.to(computing_dtype(self.resampler, self.projector)),
            output_attentions=output_attentions,
            **{name: getattr(features, name) for name in names},
        )
        tokens, mask = self.projector(visual_tokens.tokens), visual_tokens.mask
        # The processor knew no images when it wrote placeholders for the largest number of tokens.
        unused = self.resampler.max_num_tokens - mask.shape[1]
        tokens, mask = nn.functional.pad(tokens, (0, 0, 0, unused)), nn.functional.pad(mask, (0, unused))
        return GVTImageFeatures(
            last_hidden_state=tokens * mask.unsqueeze(-1),
            pooler_output=[image_tokens[kept] for image_tokens, kept in zip(tokens, mask)],
            token_mask=mask,
            attentions=visual_tokens.attentions,
            grid_size=features.grid_size,
            num_prefix_tokens=features.num_prefix_tokens,
        )

    def get_vision_features(self, pixel_values: torch.Tensor) -> VisionFeatures:
        """The features of the vision tower that the visual tokenizer reads. See [`VisionFeatures`]."""
        return extract_vision_features(
            self.vision_tower,
            pixel_values,
            feature_layer=self.config.vision_feature_layer,
            select_strategy=self.config.vision_feature_select_strategy,
            required_inputs=self.resampler.required_inputs,
        )

    def find_placeholders(self, inputs: torch.Tensor) -> torch.Tensor:
        """Positions of image placeholders in token ids or in their embeddings, `(batch, sequence_length)`."""
        image_token_id = self.config.image_token_id
        if not inputs.is_floating_point():
            return inputs == image_token_id
        return (inputs == self.get_input_embeddings()(torch.tensor(image_token_id, device=inputs.device))).all(-1)

    def get_placeholder_mask(self, inputs: torch.Tensor, image_features: GVTImageFeatures) -> torch.Tensor:
        """
        Positions of image placeholders, `(batch, sequence_length)`.

        Raises:
            ValueError: if there are not as many of them as visual tokens; names both numbers.
        """
        placeholders = self.find_placeholders(inputs)
        num_tokens, tokens_per_image = len(image_features.per_placeholder()), self.resampler.max_num_tokens
        torch_compilable_check(
            placeholders.sum() == num_tokens,
            lambda: (
                f"The text has {int(placeholders.sum())} image placeholders, the {num_tokens // tokens_per_image} "
                f"images have {num_tokens} visual tokens ({tokens_per_image} each): write {tokens_per_image} "
                f"placeholders for each image, as the processor does."
            ),
        )
        return placeholders

    @staticmethod
    def refuse_images_given_twice(mm_encoder_outputs, pixel_values, vision_features) -> None:
        encoded = (mm_encoder_outputs or {}).get("image") is not None
        if encoded and (pixel_values is not None or vision_features is not None):
            raise ValueError("Images were given twice: as pixel_values or vision_features and as mm_encoder_outputs.")

    def embed_inputs(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        image_features: GVTImageFeatures | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Text embeddings with visual tokens at the placeholders, and the attention mask without the placeholders that a
        shorter image left unused.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if image_features is None:
            return inputs_embeds, attention_mask
        placeholders = self.get_placeholder_mask(inputs_embeds if input_ids is None else input_ids, image_features)
        tokens = image_features.per_placeholder().to(inputs_embeds.device, inputs_embeds.dtype)
        inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), tokens)
        return inputs_embeds, self.mask_unused(placeholders, attention_mask, image_features.token_mask)

    def mask_unused(self, placeholders, attention_mask, token_mask):
        """The attention mask without placeholders that belong to a padding visual token."""
        if not self.resampler.variable_num_tokens or token_mask is None:
            return attention_mask
        return mask_unused_placeholders(placeholders, attention_mask, token_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, GVTImageFeatures] | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> GVTOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Text with `num_latents` placeholders for each image, as [`GVTProcessor`] writes it.
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                Images of the whole batch, in the order of their placeholders.
            vision_features (`torch.FloatTensor` of shape `(num_images, num_patches, vision_hidden_size)`, *optional*):
                Cached features of the tower in place of `pixel_values`.
            attention_mask (`torch.Tensor` of shape `(batch, sequence_length)`, *optional*):
                0 at padding. Or `(batch, 1, sequence_length, sequence_length)`, boolean: who may attend to whom.
            position_ids (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Counted over the attention mask by default, so that padding on either side changes nothing.
            mm_encoder_outputs (`dict`, *optional*): `{"image": output of get_image_features}`, in place of images.
            output_attentions (`bool`, *optional*): of the language model and of the visual tokenizer.

        Raises:
            ValueError: if text or images are given twice or not at all, or the placeholders do not fit the images.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, and exactly one of them.")
        self.refuse_images_given_twice(mm_encoder_outputs, pixel_values, vision_features)
        image_features = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None or vision_features is not None:
            image_features = self.get_image_features(pixel_values, vision_features, output_attentions)
        inputs_embeds, attention_mask = self.embed_inputs(input_ids, inputs_embeds, attention_mask, image_features)
        arguments = {"attention_mask": attention_mask, "past_key_values": past_key_values}
        if not self.config.is_encoder_decoder:
            arguments = decoder_arguments(
                self.language_model,
                inputs_embeds,
                position_ids=position_ids,
                takes_position_ids=self._takes_position_ids,
                recount=self.resampler.variable_num_tokens,
                **arguments,
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, output_attentions=output_attentions, return_dict=True, **arguments, **kwargs
        )
        return GVTOutput.of_language_model(outputs, image_features)


class GVTForConditionalGeneration(GVTPreTrainedModel, GenerationMixin):
    """
    GVT with a language modelling head: answers in text to prompts with any number of images.

    Args:
        config ([`GVTConfig`]): see there.
    """

    def __init__(self, config: GVTConfig):
        super().__init__(config)
        self.model = GVTModel(config)
        if not config.is_encoder_decoder:
            self.lm_head = build_language_head(config.text_config)
            if config.tie_word_embeddings:
                embeddings = self.model.get_input_embeddings()
                name = next(name for name, module in self.named_modules() if module is embeddings)
                self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.language_model.get_output_embeddings() if self.config.is_encoder_decoder else self.lm_head

    def set_output_embeddings(self, value: nn.Linear):
        if self.config.is_encoder_decoder:
            self.model.language_model.set_output_embeddings(value)
        else:
            self.lm_head = value

    def get_image_features(self, *args, **kwargs) -> GVTImageFeatures:
        """See [`GVTModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, GVTImageFeatures] | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        **kwargs,
    ) -> GVTOutput:
        """
        Takes the arguments of [`GVTModel.forward`] and:

        Args:
            labels (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Token ids, -100 where no loss is wanted. Of an encoder-decoder model: the target sequence.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions (0: all), or the positions, to compute logits for.
            skip_logits (`bool`, *optional*, defaults to `False`):
                With `labels`: run the head on supervised positions only and return no logits. The loss is the same.
                An encoder-decoder model runs its own head on all positions, whatever is returned.

        Returns:
            [`GVTOutput`].
        """
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "vision_features": vision_features,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "mm_encoder_outputs": mm_encoder_outputs,
            "return_dict": True,  # whatever the config says: here it is read by name
        }
        loss_arguments = {"num_items_in_batch": kwargs.pop("num_items_in_batch", None)}
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if self.config.is_encoder_decoder:
            outputs = self.model(**inputs, labels=labels, **kwargs)
            loss, logits = outputs.loss, outputs.logits[:, positions]
            if labels is not None and (num_items := loss_arguments["num_items_in_batch"]) is not None:
                # Its own loss is the mean over this batch, which may be one of several that a step accumulates.
                loss = loss * (labels != -100).sum() / num_items
            return outputs.with_head(loss, None if labels is not None and skip_logits else logits)
        outputs = self.model(**inputs, **kwargs)
        hidden_states = outputs.last_hidden_state
        text_config: Any = self.config.text_config
        if labels is not None and skip_logits:
            predicts = torch.zeros_like(labels, dtype=torch.bool)
            predicts[:, :-1] = labels[:, 1:] != -100
            logits = scale_logits(self.lm_head(hidden_states[predicts]), text_config)
            loss_arguments["shift_labels"] = labels[:, 1:][predicts[:, :-1]]
        else:
            logits = scale_logits(self.lm_head(hidden_states[:, positions]), text_config)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=text_config.vocab_size, **loss_arguments
            )
        return outputs.with_head(loss, None if labels is not None and skip_logits else logits)

    def _maybe_prepare_encoder_kwargs_for_generation(self, inputs_tensor, model_kwargs, *args, **kwargs):
        # In place of transformers' own, which encodes no cached features and knows no unused placeholders.
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "vision_features")}
        if any(image is not None for image in images.values()):
            self.model.refuse_images_given_twice(model_kwargs.get("mm_encoder_outputs"), **images)
            model_kwargs["mm_encoder_outputs"] = {"image": self.get_image_features(**images)}
        image_features = (model_kwargs.get("mm_encoder_outputs") or {}).get("image")
        if image_features is None:
            return model_kwargs
        placeholders = self.model.get_placeholder_mask(inputs_tensor, image_features)
        attention_mask = self.model.mask_unused(
            placeholders, model_kwargs.get("attention_mask"), image_features.token_mask
        )
        if attention_mask is not model_kwargs.get("attention_mask"):
            # Positions were counted before anyone knew how many tokens an image has.
            model_kwargs["attention_mask"] = attention_mask
            model_kwargs["position_ids"] = positions_from_mask(attention_mask, attention_mask.shape[1])
        # The mask has been told: from here on an image is a list of tokens, one for each placeholder.
        per_image = list(image_features.per_placeholder().split(self.model.resampler.max_num_tokens))
        model_kwargs["mm_encoder_outputs"] = {"image": GVTImageFeatures(pooler_output=per_image)}
        return model_kwargs

    @torch.no_grad()
    def generate(self, inputs=None, **kwargs):
        """
        `GenerationMixin.generate`. An encoder-decoder language model generates by itself, from merged embeddings.
        """
        if not self.config.is_encoder_decoder:
            return super().generate(inputs, **kwargs)
        input_ids = kwargs.pop("input_ids", inputs)
        images = {name: kwargs.pop(name, None) for name in ("pixel_values", "vision_features")}
        image_features = (kwargs.pop("mm_encoder_outputs", None) or {}).get("image")
        if any(image is not None for image in images.values()):
            self.model.refuse_images_given_twice({"image": image_features}, **images)
            image_features = self.get_image_features(**images)
        inputs_embeds, attention_mask = self.model.embed_inputs(
            input_ids, kwargs.pop("inputs_embeds", None), kwargs.pop("attention_mask", None), image_features
        )
        if (generation_config := kwargs.pop("generation_config", None)) is None:
            generation_config = copy.deepcopy(self.generation_config)
            kwargs = generation_config.update(**kwargs)
        kwargs["generation_config"] = generation_config
        return self.model.language_model.generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)


__all__ = [
    "GVTForConditionalGeneration",
    "GVTImageFeatures",
    "GVTModel",
    "GVTOutput",
    "GVTPreTrainedModel",
]
