"""Composed models with a language modelling head: reading out, and generating from prompts with images."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from .attention_masks import positions_from_mask
from .language_head import build_language_head, scale_logits
from .multimodal_model import MultimodalModel, MultimodalPreTrainedModel


class MultimodalForGeneration(MultimodalPreTrainedModel, GenerationMixin):
    """
    A composed model that writes. It builds its core as `model` in its `__init__`, then its head with
    [`MultimodalForGeneration._build_head`].
    """

    model: MultimodalModel

    def _build_head(self) -> None:
        if self.config.is_encoder_decoder:  # it keeps its own
            return
        self.lm_head = build_language_head(self.config.text_config)
        if self.config.tie_word_embeddings:
            embeddings = self.model.get_input_embeddings()
            name = next(name for name, module in self.named_modules() if module is embeddings)
            self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}

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

    def get_image_features(self, *args, **kwargs) -> Any:
        """See [`MultimodalModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Scores of the vocabulary, as the language model's own class would compute them.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(..., hidden_size)`): last states of a causal language model.
        """
        return scale_logits(self.lm_head(hidden_states), self.config.text_config)

    def _maybe_prepare_encoder_kwargs_for_generation(self, inputs_tensor, model_kwargs, *args, **kwargs):
        # In place of transformers' own, which encodes no cached features and knows no unused placeholders.
        images = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "vision_features")}
        image_features = self.model.images_of(**images, mm_encoder_outputs=model_kwargs.get("mm_encoder_outputs"))
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
        per_image = image_features.per_image()
        model_kwargs["mm_encoder_outputs"] = {"image": self.model.image_features_class(pooler_output=per_image)}
        return model_kwargs

    @torch.no_grad()
    def generate(self, inputs=None, **kwargs):
        """
        `GenerationMixin.generate`. An encoder-decoder language model generates by itself, from merged embeddings.
        """
        if not self.config.is_encoder_decoder:
            return super().generate(inputs, **kwargs)
        input_ids = kwargs.pop("input_ids", inputs)
        images = {name: kwargs.pop(name, None) for name in ("pixel_values", "vision_features", "mm_encoder_outputs")}
        inputs_embeds, attention_mask = self.model.embed_inputs(
            input_ids,
            kwargs.pop("inputs_embeds", None),
            kwargs.pop("attention_mask", None),
            self.model.images_of(**images),
        )
        if (generation_config := kwargs.pop("generation_config", None)) is None:
            generation_config = copy.deepcopy(self.generation_config)
            kwargs = generation_config.update(**kwargs)
        kwargs["generation_config"] = generation_config
        return self.model.language_model.generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)


__all__ = ["MultimodalForGeneration"]
