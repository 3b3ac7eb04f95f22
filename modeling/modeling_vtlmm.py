"""VT-LMM: vision tower → adapter → decoder, and a visual modelling head that reads the image as words."""

from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_vtlmm import VTLMMConfig
from .language_head import logit_transform
from .losses_visual_modeling import language_modeling_loss, visual_modeling_loss, visual_token_loss
from .multimodal_generation import MultimodalForGeneration
from .multimodal_model import MultimodalModel, MultimodalPreTrainedModel, build_language_model, embedding_width
from .outputs_vtlmm import VTLMMImageFeatures, VTLMMOutput
from .plain_matrix import matrix_of
from .pseudo_image_features import embedding_table, pseudo_image_features
from .vision_features import build_vision_tower, feature_grid
from .visual_positions import predicted_image_positions, used_placeholders
from .visual_tokenizer import VisualTokenizer
from .visual_words import VisualTokenDistributions, nearest_tokens, visual_token_distributions
from .vm_head import build_vm_head, last_layer, resize_vm_head, warn_of_untrained_vm_head

VISUAL_LOSSES = {"visual_modeling": visual_modeling_loss, "visual_tokens": visual_token_loss}


class VTLMMPreTrainedModel(MultimodalPreTrainedModel):
    config: VTLMMConfig
    config_class = VTLMMConfig
    trainable_parts = {
        "vision": "model.vision_tower",
        "adapter": "model.adapter",
        "llm": ("model.language_model", "lm_head"),
        "vm_head": "model.vm_head",
    }

    @classmethod
    def from_vision_text_pretrained(cls, vision: str, text: str, *, image_size: int | None = None, **kwargs):
        """
        Composes a model from a vision and a language checkpoint; the adapter and the visual modelling head are new and
        random.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
            text (`str`): causal language checkpoint: `"vistok:smollm2-135m"`, a folder or a Hub id.
            image_size (`int`, *optional*):
                Side of the images in pixels, as told to the processor; by default the tower's own. The model reads
                images of any size; its config notes how many visual tokens one has.
            kwargs: as in [`ComposedPreTrainedModel.from_vision_text_pretrained`]: `dtype`, `attn_implementation`, …,
                and fields of [`VTLMMConfig`] or [`MLPAdapterConfig`].

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: if an override is a field of neither config, or the language model is an encoder-decoder.
            FetchError: if base weights of vistok are not in the cache; names the command for all of them.
            CheckpointError: if the vision checkpoint is no tower, or weights are truncated or missing.
        """
        model = super().from_vision_text_pretrained(vision, text, **kwargs)
        model.config.vm_head_trained = False
        if image_size is not None:
            core = getattr(model, model.base_model_prefix, model)
            layer = model.config.vision_feature_layer
            height, width = feature_grid(model.config.vision_config, (image_size, image_size), layer)
            for config in (model.config.adapter_config, core.adapter.config):
                if hasattr(config, "num_tokens"):
                    config.num_tokens = height * width
        return model

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """`PreTrainedModel.resize_token_embeddings`, and the visual modelling head with them."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        std = getattr(self.config.text_config, "initializer_range", 0.02)
        core: Any = getattr(self, self.base_model_prefix, self)
        resize_vm_head(core.vm_head, embeddings.num_embeddings, std)
        return embeddings


class VTLMMModel(VTLMMPreTrainedModel, MultimodalModel):
    """
    Vision tower, adapter, decoder and visual modelling head, without the multi-modal modelling head (VT-LMM, Figure
    3). Its `forward` is that of [`MultimodalModel`], and returns a [`VTLMMOutput`].

    Args:
        config ([`VTLMMConfig`]): the adapter is built from `config.adapter_config` by its `model_type`.

    Raises:
        ValueError: if the image placeholder is no token of the language model, or the adapter's tokens are of another
            width than its embeddings; names both numbers.
    """

    image_features_class = VTLMMImageFeatures
    output_class = VTLMMOutput

    def __init__(self, config: VTLMMConfig):
        super().__init__(config)
        config.check_image_token()
        self.vision_tower = build_vision_tower(config.vision_config)
        self.adapter = AutoModel.from_config(config.adapter_config)
        language_model = build_language_model(config)
        width = embedding_width(language_model)
        if self.adapter.output_size != width:
            raise ValueError(
                f"{type(self.adapter).__name__} makes visual tokens of width {self.adapter.output_size}, the language "
                f"model's embeddings are {width} wide: VT-LMM has no projector, so the adapter must make that width."
            )
        self._set_language_model(language_model)
        self.vm_head = build_vm_head(width, language_model.get_input_embeddings().num_embeddings, config.vm_head_rank)
        self.post_init()

    @property
    def visual_tokenizer(self) -> VisualTokenizer:
        return self.adapter

    def get_adapter_features(self, *args, **kwargs) -> VTLMMImageFeatures:
        """The adapter's output X_image alone: [`MultimodalModel.get_image_features`], whatever the decoder reads."""
        return super().get_image_features(*args, **kwargs)

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> VTLMMImageFeatures:
        """
        Encodes images into what the decoder reads of them: the adapter's output, and, of a model with
        `pseudo_image_features`, what takes its place (Eq. 8).

        Args:
            pixel_values, vision_features, output_attentions: as in [`MultimodalModel.get_image_features`].

        Returns:
            [`VTLMMImageFeatures`].

        Raises:
            ValueError: as [`MultimodalModel.get_image_features`].
        """
        features = self.get_adapter_features(pixel_values, vision_features, output_attentions)
        if not self.config.pseudo_image_features:
            return features
        warn_of_untrained_vm_head(self.config)
        return features.with_pseudo_features(
            pseudo_image_features(features.last_hidden_state, self.vm_head, self.get_input_embeddings())
        )


class VTLMMForCausalLM(VTLMMPreTrainedModel, MultimodalForGeneration):
    """
    VT-LMM with its multi-modal modelling head: answers in text to prompts with any number of images, reads images as
    words, and learns from both (Eq. 4, 6, 7 and 9).

    Args:
        config ([`VTLMMConfig`]): see there.
    """

    model: VTLMMModel

    def __init__(self, config: VTLMMConfig):
        super().__init__(config)
        self.model = VTLMMModel(config)
        self._build_head()
        self.post_init()

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
        mm_encoder_outputs: dict[str, VTLMMImageFeatures] | None = None,
        labels: torch.Tensor | None = None,
        visual_loss: Literal["visual_modeling", "visual_tokens"] | None = None,
        visual_loss_weight: float = 1.0,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        num_visual_items: int | torch.Tensor | None = None,
        loss_implementation: Literal["fused", "plain"] | None = None,
        **kwargs,
    ) -> VTLMMOutput:
        """
        Takes the arguments of [`MultimodalModel.forward`] and:

        Args:
            labels (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Token ids, -100 where no language modelling loss is wanted (Eq. 4).
            visual_loss (`str`, *optional*):
                `"visual_modeling"`: KL(P' ‖ Q), which trains whatever makes Q (Eq. 6, stage IV). `"visual_tokens"`:
                KL(Q ‖ P'), which trains the visual modelling head alone (Eq. 9, stage III): tower, adapter and decoder
                then run without gradients.
            visual_loss_weight (`float`, *optional*, defaults to 1.0): factor of the visual loss in `loss` (Eq. 7).
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions (0: all), or the positions, to compute logits for.
            skip_logits (`bool`, *optional*):
                Return no logits, and hold none but a chunk at a time for the losses, which are the same. By default
                where a loss is trained: in training mode, unless `logits_to_keep` asks for some.
            num_items_in_batch (`int`, *optional*):
                Divides the language modelling loss: answer tokens over all micro-batches and processes. By default
                those of this batch.
            num_visual_items (`int`, *optional*):
                Divides the visual loss: predicted image positions over all micro-batches and processes. By default
                those of this batch.
            loss_implementation (`str`, *optional*):
                `"fused"` or `"plain"`, see [`visual_modeling_loss`]; by default `"fused"` with `skip_logits`.

        Returns:
            [`VTLMMOutput`].

        Raises:
            ValueError: if `visual_loss` is unknown, or asked of images given as lists of pseudo features; if there are
                not as many labels as tokens; and as [`MultimodalModel.forward`].
        """
        if visual_loss is not None and visual_loss not in VISUAL_LOSSES:
            raise ValueError(f"visual_loss is {visual_loss!r}: choose {', '.join(VISUAL_LOSSES)} or None.")
        if skip_logits is None:
            keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
            skip_logits = self.training and keeps_all and (labels is not None or visual_loss is not None)
        implementation = loss_implementation or ("fused" if skip_logits else "plain")
        with torch.set_grad_enabled(torch.is_grad_enabled() and visual_loss != "visual_tokens"):
            image_features = self.model.images_of(
                mm_encoder_outputs, pixel_values=pixel_values, vision_features=vision_features
            )
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                mm_encoder_outputs={"image": image_features},
                **{**kwargs, "return_dict": True},  # whatever the config says: here it is read by name
            )
            hidden_states, labels = outputs.last_hidden_state, self._real_labels(labels, outputs)
            loss_lm = None
            if labels is not None:
                loss_lm = self._language_modeling_loss(hidden_states, labels, num_items_in_batch, implementation)
        inputs = inputs_embeds if input_ids is None else input_ids
        placeholders, visual_positions = self._visual_positions(inputs, image_features, attention_mask, position_ids)
        loss_vm = None
        if visual_loss is not None:
            states = hidden_states[:, :-1][visual_positions[:, 1:].to(hidden_states.device)]
            visual_tokens = self._visual_tokens(image_features, hidden_states)
            predicted = visual_positions[placeholders].to(visual_tokens.device)
            visual_tokens = visual_tokens[predicted]
            loss_vm = self._visual_loss(visual_loss, states, visual_tokens, num_visual_items, implementation)
        logits = None if skip_logits else self._logits(outputs, logits_to_keep)
        parts = [loss_lm, None if loss_vm is None else loss_vm * visual_loss_weight]
        loss = sum(part for part in parts if part is not None) if any(part is not None for part in parts) else None
        return outputs.with_head(loss, logits, loss_lm=loss_lm, loss_vm=loss_vm, visual_positions=visual_positions)

    def _head(self, like: torch.Tensor) -> dict[str, Any]:
        """The multi-modal modelling head as arguments of the losses."""
        weight, bias = matrix_of(self.lm_head, like.shape[-1], like)
        return {
            "lm_head_weight": weight,
            "lm_head_bias": bias,
            "transform_logits": logit_transform(self.config.text_config),
        }

    @torch.compiler.disable  # its loops over chunks gain nothing from it
    def _language_modeling_loss(self, hidden_states, labels, num_items, implementation) -> torch.Tensor:
        if labels.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"labels have the shape {tuple(labels.shape)}, expected that of the input ids, "
                f"{tuple(hidden_states.shape[:2])}: a label for each token, -100 where there is none."
            )
        labels = labels.to(hidden_states.device)
        predicts = labels[:, 1:] != -100
        head = self._head(hidden_states)
        device = head["lm_head_weight"].device
        rows, targets = hidden_states[:, :-1][predicts].to(device), labels[:, 1:][predicts].to(device)
        return language_modeling_loss(rows, labels=targets, num_items=num_items, implementation=implementation, **head)

    @torch.compiler.disable
    def _visual_loss(self, kind, states, visual_tokens, num_items, implementation) -> torch.Tensor:
        head = self._head(states)
        device = head["lm_head_weight"].device
        features, weight = last_layer(self.model.vm_head, visual_tokens)
        if kind == "visual_modeling":
            warn_of_untrained_vm_head(self.config)
        elif torch.is_grad_enabled() and weight.requires_grad:
            self.config.vm_head_trained = True  # whoever trains it, and wherever it is saved from here on
        return VISUAL_LOSSES[kind](
            states.to(device),
            image_features=features.to(device),
            vm_head_weight=weight.to(device),
            num_items=num_items,
            implementation=implementation,
            **head,
        )

    def _visual_positions(
        self, inputs, image_features, attention_mask, position_ids
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Placeholders of images, and which of them are predicted, both `(batch, sequence_length)`."""
        if image_features is None:
            nowhere = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
            return nowhere, nowhere
        placeholders = self.model.find_placeholders(inputs)
        real = used_placeholders(placeholders, image_features.token_mask)
        return placeholders, predicted_image_positions(real, attention_mask, position_ids, unused=placeholders & ~real)

    def _visual_tokens(self, image_features, hidden_states) -> torch.Tensor:
        """The adapter's output, a row for each placeholder."""
        if image_features is None:
            return hidden_states.new_zeros(0, self.model.adapter.output_size)
        if image_features.last_hidden_state is not None:
            return image_features.last_hidden_state.flatten(0, 1)
        if self.config.pseudo_image_features:
            raise ValueError(
                "mm_encoder_outputs hold pseudo image features alone, but a visual loss compares with the adapter's "
                "output: give the output of get_image_features, or the images."
            )
        return image_features.per_placeholder()

    def get_visual_tokens(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        top_k: int = 5,
        return_distribution: bool = False,
        reference: torch.Tensor | None = None,
    ) -> VisualTokenDistributions:
        """
        Reads images as words: of each visual token the most probable tokens of the vocabulary (Eq. 5, Figure 4). With
        `vision_feature_select_strategy="full"` the first visual tokens are those of [CLS] and registers.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                Images, normalised as the tower expects.
            vision_features (`torch.FloatTensor` of shape `(num_images, num_patches, vision_hidden_size)`, *optional*):
                Cached features of the tower in place of `pixel_values`.
            top_k (`int`, *optional*, defaults to 5): how many tokens of the vocabulary for each visual token.
            return_distribution (`bool`, *optional*, defaults to `False`):
                Whether to return whole distributions too, `(num_images, num_tokens, vocab_size)`.
            reference (`torch.FloatTensor` of shape `(vocab_size,)`, *optional*):
                A distribution P̄, such as the mean of P' over the patches of many images
                (`vistok.evaluation.word_reference`). `distinctive` then holds the `top_k` tokens of each visual token
                with the largest P' log(P'/P̄), which are its own where punctuation marks are probable everywhere.

        Returns:
            [`VisualTokenDistributions`].

        Raises:
            ValueError: unless exactly one of `pixel_values` and `vision_features` is given; or if the vocabulary has
                no `top_k` tokens, or `reference` is no distribution over it.
        """
        warn_of_untrained_vm_head(self.config)
        with torch.no_grad():
            features = self.model.get_adapter_features(pixel_values, vision_features)
        return visual_token_distributions(
            features.last_hidden_state,
            self.model.vm_head,
            top_k,
            return_distribution,
            features.grid_size,
            features.num_prefix_tokens,
            reference,
        )

    def nearest_text_tokens(self, image_features: torch.Tensor, top_k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The words whose text embeddings are closest to visual tokens (Eq. 3). The placeholder of images, and rows that
        only fill the matrix up and equal its own, are no words.

        Args:
            image_features (`torch.FloatTensor` of shape `(..., hidden_size)`): the adapter's output X_image, such as
                `image_hidden_states` of the forward pass.
            top_k (`int`, *optional*, defaults to 1): how many words for each.

        Returns:
            `tuple`: cosine similarities and token ids, both `(..., top_k)`, the closest first.

        Raises:
            ValueError: if the vocabulary has no `top_k` words.
        """
        embeddings: Any = self.get_input_embeddings()
        table = embedding_table(embeddings, embeddings.num_embeddings)
        return nearest_tokens(image_features, table, top_k, no_word=table[self.config.image_token_id])


__all__ = ["VTLMMForCausalLM", "VTLMMImageFeatures", "VTLMMModel", "VTLMMOutput", "VTLMMPreTrainedModel"]
