"""The core of every composed model: images become visual tokens, and a language model reads them among its text."""

import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .attention_masks import check_length, decoder_arguments, is_tree
from .compact_sequences import CompactSequences
from .composition import ComposedPreTrainedModel
from .multimodal_outputs import ImageFeatures
from .vision_features import cached_vision_features, extract_vision_features
from .visual_tokenizer import VisionFeatures, VisualTokenizer, VisualTokenizerOutput, computing_dtype


class MultimodalPreTrainedModel(ComposedPreTrainedModel):
    """What all classes of a composed model declare."""

    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
    """
    The language model of a composed model, with random weights and without a head of its own; but an encoder-decoder
    one with it, because it scales its states before the head and generates by itself.

    Args:
        config (`PreTrainedConfig`): of the composed model: `text_config` and `is_encoder_decoder` count.
    """
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM.from_config(config.text_config)
    return AutoModel.from_config(config.text_config)


def embedding_width(language_model: PreTrainedModel) -> int:
    """The width of embeddings, which in some models (OPT-350m) is not that of the states."""
    return language_model.get_input_embeddings().embedding_dim  # unlike its weight, this is known under ZeRO-3 too


class MultimodalModel(MultimodalPreTrainedModel):
    """
    Vision tower, visual tokenizer and language model, without a head. A model of this kind builds, in its `__init__`,
    `vision_tower`, its visual tokenizer under a name of its own, and the language model with
    [`MultimodalModel._set_language_model`]; it says which is the `visual_tokenizer`, and may put more behind it in
    `project`.
    """

    image_features_class: ClassVar[type[ImageFeatures]] = ImageFeatures
    output_class: ClassVar[Any] = None
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "vision_features")
    vision_tower: PreTrainedModel
    language_model: PreTrainedModel

    @classmethod
    def _own_name(cls, name: str) -> str:
        return name.removeprefix(f"{cls.base_model_prefix}.")

    def _set_language_model(self, language_model: PreTrainedModel) -> None:
        self.language_model = language_model
        self._takes_position_ids = "position_ids" in inspect.signature(language_model.forward).parameters

    @property
    def visual_tokenizer(self) -> VisualTokenizer:
        """What turns patch features into visual tokens, whatever this model calls it."""
        raise NotImplementedError(f"{type(self).__name__} does not say which of its parts is the visual tokenizer.")

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """
        Brings visual tokens to the width of the language model's embeddings.

        Args:
            tokens (`torch.FloatTensor` of shape `(num_images, num_tokens, output_size)`): of the visual tokenizer.
        """
        return tokens

    @property
    def projection(self) -> nn.Module | None:
        """The one layer that `project` consists of; `None` where it is none, or several."""
        return None

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
    ) -> Any:
        """
        Encodes images into projected visual tokens.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                Images, normalised as the tower expects.
            vision_features (`torch.FloatTensor` of shape `(num_images, num_patches, vision_hidden_size)`, *optional*):
                Features of a frozen tower computed earlier (see [`MultimodalModel.get_vision_features`]), in place of
                images.
            output_attentions (`bool`, *optional*): whether to return the visual tokenizer's attention maps.

        Returns:
            [`ImageFeatures`].

        Raises:
            ValueError: unless exactly one of `pixel_values` and `vision_features` is given; or if the visual tokenizer
                reads more than these features.
        """
        if (pixel_values is None) == (vision_features is None):
            raise ValueError("get_image_features takes pixel_values or vision_features, and exactly one of them.")
        tokenizer = self.visual_tokenizer
        if vision_features is not None:
            features = cached_vision_features(vision_features, self.config.vision_feature_select_strategy, tokenizer)
        elif pixel_values is not None:
            features = self.get_vision_features(pixel_values)
        visual_tokens: Any = self.tokenize(features, output_attentions)
        given, mask = visual_tokens.tokens, visual_tokens.mask
        tokens = self.project(given)
        if (placeholders := self.num_placeholders(features)) is not None:
            unused = placeholders - mask.shape[1]
            tokens, given = (nn.functional.pad(of_images, (0, 0, 0, unused)) for of_images in (tokens, given))
            mask = nn.functional.pad(mask, (0, unused))
        # Elsewhere than on a CPU it takes longer to ask a mask than to leave all as it is.
        real = [image[kept] for image, kept in zip(tokens, mask)] if tokenizer.variable_num_tokens else list(tokens)
        return self.image_features_class(
            last_hidden_state=tokens * mask.unsqueeze(-1),
            pooler_output=real,
            token_mask=mask,
            assignment=visual_tokens.assignment,
            attentions=visual_tokens.attentions,
            grid_size=features.grid_size,
            num_prefix_tokens=features.num_prefix_tokens,
            tokens=given,
        )

    def tokenize(self, features: VisionFeatures, output_attentions: bool | None = None) -> VisualTokenizerOutput:
        """
        What the visual tokenizer makes of what the tower saw.

        Args:
            features ([`VisionFeatures`]): of the tower.
            output_attentions (`bool`, *optional*): whether to return its attention maps.
        """
        tokenizer = self.visual_tokenizer
        names = {"grid_size", "num_prefix_tokens", *tokenizer.required_inputs}
        return tokenizer(
            features.patch_features.to(self._tokenizer_dtype()),
            output_attentions=output_attentions,
            **{name: getattr(features, name) for name in names},
        )

    def num_placeholders(self, features: VisionFeatures) -> int | None:
        """
        How many placeholders the processor, which knew no images, wrote for each; `None`: as many as it has tokens.

        Args:
            features ([`VisionFeatures`]): of the tower.
        """
        tokenizer = self.visual_tokenizer
        return None if tokenizer.one_token_per_patch else tokenizer.max_num_tokens

    def _tokenizer_dtype(self) -> torch.dtype:
        return computing_dtype(self.visual_tokenizer, self.language_model)

    def get_vision_features(self, pixel_values: torch.Tensor) -> VisionFeatures:
        """The features of the vision tower that the visual tokenizer reads. See [`VisionFeatures`]."""
        return extract_vision_features(
            self.vision_tower,
            pixel_values,
            feature_layer=self.config.vision_feature_layer,
            select_strategy=self.config.vision_feature_select_strategy,
            required_inputs=self.visual_tokenizer.required_inputs,
        )

    def find_placeholders(self, inputs: torch.Tensor) -> torch.Tensor:
        """Positions of image placeholders in token ids or in their embeddings, `(batch, sequence_length)`."""
        image_token_id = self.config.image_token_id
        if not inputs.is_floating_point():
            return inputs == image_token_id
        return (inputs == self.get_input_embeddings()(torch.tensor(image_token_id, device=inputs.device))).all(-1)

    def get_placeholder_mask(self, inputs: torch.Tensor, image_features: ImageFeatures) -> torch.Tensor:
        """
        Positions of image placeholders, `(batch, sequence_length)`.

        Args:
            inputs (`torch.Tensor`): token ids or embeddings.
            image_features ([`ImageFeatures`]): of the images of the whole batch.

        Raises:
            ValueError: if there are not as many of them as visual tokens; names both numbers.
        """
        placeholders = self.find_placeholders(inputs)
        tokens = image_features.per_image()
        num_images, num_tokens = len(tokens), sum(len(image) for image in tokens)
        each = num_tokens // max(num_images, 1)
        torch_compilable_check(
            placeholders.sum() == num_tokens,
            lambda: (
                f"The text has {int(placeholders.sum())} image placeholders, the {num_images} images have "
                f"{num_tokens} visual tokens ({each} each): write {each} placeholders for each image, as the "
                "processor does."
            ),
        )
        return placeholders

    def images_of(
        self, mm_encoder_outputs: dict[str, Any] | None = None, output_attentions: bool | None = None, **images: Any
    ) -> Any:
        """
        The features of the images of a batch, in whatever form they were given; `None` without images.

        Args:
            mm_encoder_outputs (`dict`, *optional*): `{"image": output of get_image_features}`.
            output_attentions (`bool`, *optional*): as in [`MultimodalModel.get_image_features`].
            images: arguments of [`MultimodalModel.get_image_features`], by the names in `image_inputs`.

        Raises:
            ValueError: if images were given twice.
        """
        images = {name: value for name, value in images.items() if value is not None}
        encoded = (mm_encoder_outputs or {}).get("image")
        if images and encoded is not None:
            raise ValueError(f"Images were given twice: as {' and '.join(images)} and as mm_encoder_outputs.")
        return self.get_image_features(**images, output_attentions=output_attentions) if images else encoded

    def compact_prompt(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mm_encoder_outputs: dict[str, Any] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any] | None]:
        """
        A prompt as the language model reads it, whose ids say how long it is: without the placeholders that images
        left unused, padded again. For whoever fills a key-value cache by hand and goes on from it.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence_length)`): as the processor wrote them.
            attention_mask (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*): 0 at padding.
            mm_encoder_outputs (`dict`, *optional*): `{"image": output of get_image_features}`.

        Returns:
            `tuple`: ids, mask and images that belong together; as they were where every placeholder is used.
        """
        image_features = (mm_encoder_outputs or {}).get("image")
        if image_features is None:
            return input_ids, attention_mask, mm_encoder_outputs
        placeholders = self.get_placeholder_mask(input_ids, image_features)
        compact = self.compact_sequences(placeholders, attention_mask, image_features)
        if compact is None:
            return input_ids, attention_mask, mm_encoder_outputs
        images = self.image_features_class(pooler_output=image_features.real_tokens())
        return compact.take(input_ids, self.filler_id()), compact.attention_mask(attention_mask), {"image": images}

    def filler_id(self) -> int:
        """An id to pad rows with, which is no placeholder of images."""
        return 0 if self.config.image_token_id != 0 else 1

    def compact_sequences(
        self,
        placeholders: torch.Tensor,
        attention_mask: Any,
        image_features: ImageFeatures,
        past_key_values: Cache | None = None,
    ) -> CompactSequences | None:
        """
        Which columns rows keep where images left placeholders unused; `None` where none did. See
        [`CompactSequences.of`].
        """
        if not self.visual_tokenizer.variable_num_tokens or image_features.token_mask is None:
            return None
        past_length = 0
        if past_key_values is not None and not self.config.is_encoder_decoder:
            past_length = past_key_values.get_seq_length()
        return CompactSequences.of(placeholders, image_features.token_mask, attention_mask, past_length)

    def embed_inputs(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: Any,
        image_features: ImageFeatures | None,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, Any, CompactSequences | None]:
        """
        Text embeddings with visual tokens at the placeholders, in rows as long as their images have tokens.

        Args:
            input_ids, inputs_embeds, attention_mask: as in [`MultimodalModel.forward`].
            image_features ([`ImageFeatures`], *optional*): of the images of the whole batch.
            past_key_values (`Cache`, *optional*): what was read before.

        Returns:
            `tuple`: embeddings, their attention mask, and which of the given columns they are, `None` for all.
        """
        placeholders = compact = None
        if image_features is not None:
            inputs: Any = inputs_embeds if input_ids is None else input_ids
            placeholders = self.get_placeholder_mask(inputs, image_features)
            compact = self.compact_sequences(placeholders, attention_mask, image_features, past_key_values)
        if placeholders is not None and compact is not None:
            placeholders, attention_mask = compact.take(placeholders), compact.attention_mask(attention_mask)
            input_ids = None if input_ids is None else compact.take(input_ids, self.filler_id())
            inputs_embeds = None if inputs_embeds is None else compact.take(inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if placeholders is not None and image_features is not None:
            tokens = image_features.per_placeholder() if compact is None else torch.cat(image_features.real_tokens())
            tokens = tokens.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), tokens)
        return inputs_embeds, attention_mask, compact

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
        mm_encoder_outputs: dict[str, Any] | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> Any:
        """
        Where images have fewer visual tokens than placeholders, the language model reads rows without the others: its
        time, its key-value cache and its positions follow the real number of tokens. States and attention maps come
        back at the given positions; an unused placeholder has the state of the last token before it, which predicts
        what comes next.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Text with a placeholder for each visual token of each image, as the processor writes it.
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

        Returns:
            The output of the model's kind, such as [`GVTOutput`].

        Raises:
            ValueError: if text or images are given twice or not at all, the placeholders do not fit the images, or the
                attention mask does not fit the cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give input_ids or inputs_embeds, and exactly one of them.")
        image_features = self.images_of(
            mm_encoder_outputs, output_attentions, pixel_values=pixel_values, vision_features=vision_features
        )
        inputs_embeds, attention_mask, compact = self.embed_inputs(
            input_ids, inputs_embeds, attention_mask, image_features, past_key_values
        )
        if self.visual_tokenizer.variable_num_tokens:
            check_length(attention_mask, past_key_values, inputs_embeds.shape[1])
        if compact is not None:
            position_ids = None if is_tree(attention_mask) else compact.position_ids(position_ids)
        arguments = {"attention_mask": attention_mask, "past_key_values": past_key_values}
        if not self.config.is_encoder_decoder:
            arguments = decoder_arguments(
                self.language_model,
                inputs_embeds,
                position_ids=position_ids,
                takes_position_ids=self._takes_position_ids,
                **arguments,
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, output_attentions=output_attentions, return_dict=True, **arguments, **kwargs
        )
        if compact is not None:
            outputs = compact.restore_outputs(outputs, self.config.is_encoder_decoder)
        output = self.output_class.of_language_model(outputs, image_features)
        if compact is not None:
            output.compact = compact
        return output


__all__ = ["MultimodalModel", "MultimodalPreTrainedModel", "build_language_model", "embedding_width"]
