"""Setokim: SeTok → input projection → language model → output projection → SeTok's decoders."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_setokim import SetokimConfig
from .language_head import logit_transform
from .losses_visual_modeling import language_modeling_loss
from .modeling_setok import SeTokForPreTraining
from .multimodal_model import MultimodalModel, build_language_model, embedding_width
from .outputs_setokim import SetokimImageFeatures, SetokimOutput
from .plain_matrix import matrix_of
from .setokim_composition import SetokimPreTrainedModel
from .setokim_token_bank import ChoosesTokens
from .setokim_token_rows import ReadsTokenRows, WritesTokenRows
from .setokim_writing import SetokimWriting
from .visual_positions import predicted_image_positions
from .visual_regression import visual_regression_loss
from .visual_tokenizer import VisualTokenizer, computing_dtype

IGNORED = -100


class SetokimModel(SetokimPreTrainedModel, ReadsTokenRows, MultimodalModel):
    """
    SeTok with its decoders, input projection and language model, without heads (SeTok, Section 2.2). Its `forward` is
    that of [`MultimodalModel`], and returns a [`SetokimOutput`].

    Args:
        config ([`SetokimConfig`]): see there.

    Raises:
        ValueError: if placeholder, `[Img]` or `[/Img]` is no token of the language model; names both numbers.
    """

    image_features_class = SetokimImageFeatures
    output_class = SetokimOutput
    image_inputs = ("pixel_values", "vision_features", "visual_tokens")
    _keys_to_ignore_on_load_unexpected = [r"^output_projection\.", r"^token_bank\."]  # what writes visual tokens

    def __init__(self, config: SetokimConfig):
        super().__init__(config)
        config.check_image_token()
        setok_config: Any = config.setok_config
        self.setok = SeTokForPreTraining(setok_config)
        language_model = build_language_model(config)
        self.input_projection = nn.Linear(self.visual_tokenizer.output_size, embedding_width(language_model))
        self._set_language_model(language_model)
        self.token_rows = None
        if config.trained_token_rows:
            self._add_rows_of_embeddings()
        self.post_init()

    @property
    def vision_tower(self) -> Any:
        return self.setok.vision_model.vision_tower

    @property
    def visual_tokenizer(self) -> VisualTokenizer:
        return self.setok.vision_model.tokenizer

    @property
    def projection(self) -> nn.Module:
        return self.input_projection

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.input_projection(tokens.to(computing_dtype(self.input_projection)))

    def _tokenizer_dtype(self) -> torch.dtype:
        return computing_dtype(self.visual_tokenizer, self.input_projection)

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        visual_tokens: Sequence[torch.Tensor | None] | None = None,
        **kwargs,
    ) -> SetokimImageFeatures:
        """
        Encodes images into projected visual tokens.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                Images, normalised as the tower expects.
            vision_features (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`, *optional*):
                Features of the tower computed earlier, of patches alone, in place of images.
            output_attentions (`bool`, *optional*): not used: SeTok has assignments in place of attention maps.
            visual_tokens (`list`, *optional*):
                Images given as their visual tokens, `(num_tokens, token_size)` each: tokens that a tokenizer or this
                model made earlier, such as that of an object to be cut out. One entry for each image of the batch, in
                the order of their placeholders; `None` stands for the next of `pixel_values` or `vision_features`.

        Returns:
            [`SetokimImageFeatures`].

        Raises:
            ValueError: if pixels and features are both given; if there are not as many as entries of `None`; or if
                tokens are of another width, none, or more than the tokenizer's largest number.
        """
        if pixel_values is not None and vision_features is not None:
            raise ValueError("get_image_features takes pixel_values or vision_features, and exactly one of them.")
        tower_inputs = pixel_values if pixel_values is not None else vision_features
        num_encoded = 0 if tower_inputs is None else len(tower_inputs)
        given: list[torch.Tensor | None] = [None] * num_encoded if visual_tokens is None else list(visual_tokens)
        if not given:
            raise ValueError(
                "There are no images: give pixel_values or vision_features, exactly one of them, or visual_tokens."
            )
        if given.count(None) != num_encoded:
            raise ValueError(
                f"visual_tokens leaves {given.count(None)} of {len(given)} images to pixel_values or vision_features, "
                f"and these have {num_encoded}: give None for each image that is encoded, and tokens for the others."
            )
        encoded = self._encode(pixel_values, vision_features) if num_encoded else None
        tokens, mask = self._gathered(given, encoded)
        embeddings = self.project(tokens) * mask.unsqueeze(-1)
        features = SetokimImageFeatures(
            last_hidden_state=embeddings,
            pooler_output=[image[kept] for image, kept in zip(embeddings, mask)],
            token_mask=mask,
            tokens=tokens,
            num_prefix_tokens=0,
        )
        if encoded is not None and num_encoded == len(given):
            for name in ("patch_features", "grid_size", "assignment", "cluster_masks"):
                features[name] = encoded[name]
        return features

    def _encode(self, pixel_values, vision_features) -> dict[str, Any]:
        """What SeTok makes of images: its output, the patches and their grid."""
        patches, grid_size = vision_features, None
        if pixel_values is not None:
            features = self.get_vision_features(pixel_values)
            patches, grid_size = features.patch_features, features.grid_size
        patches = patches.to(self._tokenizer_dtype())
        if grid_size is None:
            side = round(patches.shape[1] ** 0.5)
            grid_size = (side, side) if side * side == patches.shape[1] else None
        output = self.visual_tokenizer(patches, grid_size, num_prefix_tokens=0)
        return {**output, "patch_features": patches, "grid_size": grid_size}

    def _gathered(self, given: list[torch.Tensor | None], encoded) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of all images, padded to the largest number, and which are real."""
        size, length = self.visual_tokenizer.output_size, self.visual_tokenizer.max_num_tokens
        if encoded is not None and len(encoded["tokens"]) == len(given):
            unused = length - encoded["mask"].shape[1]
            tokens = nn.functional.pad(encoded["tokens"], (0, 0, 0, unused))
            mask = nn.functional.pad(encoded["mask"], (0, unused))
            return tokens * mask.unsqueeze(-1), mask
        weight = self.input_projection.weight
        rest = [] if encoded is None else [image[kept] for image, kept in zip(encoded["tokens"], encoded["mask"])]
        images = [
            rest.pop(0) if image is None else image.to(weight.device, self._tokenizer_dtype()) for image in given
        ]
        tokens = torch.stack([self._padded(image, number, size, length) for number, image in enumerate(images)])
        counts = torch.tensor([len(image) for image in images], device=tokens.device)
        return tokens, torch.arange(length, device=tokens.device) < counts[:, None]

    def _padded(self, image: torch.Tensor, number: int, size: int, length: int) -> torch.Tensor:
        if image.ndim != 2 or image.shape[1] != size or not 0 < len(image) <= length:
            raise ValueError(
                f"visual_tokens[{number}] has the shape {tuple(image.shape)}, expected (num_tokens, {size}) with 1 to "
                f"{length} tokens, the tokenizer's max_tokens."
            )
        return nn.functional.pad(image, (0, 0, 0, length - len(image)))


class SetokimForConditionalGeneration(SetokimPreTrainedModel, WritesTokenRows, ChoosesTokens, SetokimWriting):
    """
    Setokim: reads text and images and writes both. Images are written as visual tokens, which SeTok's decoders turn
    into pixels or masks (SeTok, Section 2.2).

    Args:
        config ([`SetokimConfig`]): see there.
    """

    model: SetokimModel

    def __init__(self, config: SetokimConfig):
        super().__init__(config)
        self.model = SetokimModel(config)
        self._build_head()
        self.head_rows = None
        if config.trained_token_rows:
            self._add_rows_of_head()
        text_config: Any = config.text_config
        self.output_projection = nn.Linear(text_config.hidden_size, self.model.visual_tokenizer.output_size)
        self.token_bank = self._new_bank(config.token_bank_size) if config.token_bank_size else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        visual_tokens: Sequence[torch.Tensor | None] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, SetokimImageFeatures] | None = None,
        labels: torch.Tensor | None = None,
        visual_loss_weight: float | None = None,
        length_loss_weight: float | None = None,
        choice_loss_weight: float | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        predict_visual_tokens: bool = False,
        num_items_in_batch: int | torch.Tensor | None = None,
        num_visual_items: int | torch.Tensor | None = None,
        loss_implementation: Literal["fused", "plain"] | None = None,
        **kwargs,
    ) -> SetokimOutput:
        """
        Takes the arguments of [`MultimodalModel.forward`] and:

        Args:
            visual_tokens (`list`, *optional*):
                Images given as their visual tokens, see [`SetokimModel.get_image_features`].
            labels (`torch.LongTensor` of shape `(batch, sequence_length)`, *optional*):
                Token ids, -100 where nothing is learned. An image that the model is to write has its own placeholders
                as labels, one that it only reads -100; `[Img]` and `[/Img]` are text.
            visual_loss_weight, length_loss_weight, choice_loss_weight (`float`, *optional*):
                Those of the config by default.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions (0: all), or the positions, to compute logits for.
            skip_logits (`bool`, *optional*, defaults to `False`):
                Return no logits, and hold none but a chunk at a time for the losses, which are the same.
            predict_visual_tokens (`bool`, *optional*, defaults to `False`):
                Return the visual token that would come behind the last position, as a generation needs it.
            num_items_in_batch (`int`, *optional*):
                Divides the loss of the text: labels of text over all micro-batches and processes. By default those of
                this batch. Placeholders are no text, whatever their labels.
            num_visual_items (`int`, *optional*):
                Divides the losses of images: visual tokens that are written over all micro-batches and processes. By
                default those of this batch.
            loss_implementation (`str`, *optional*):
                `"fused"` or `"plain"`, see [`visual_modeling_loss`]; by default `"fused"` with `skip_logits`.

        Returns:
            [`SetokimOutput`].

        Raises:
            ValueError: if there are not as many labels as tokens, a placeholder has the label of something else, or a
                label stands at a placeholder without images; and as [`MultimodalModel.forward`].
        """
        images: dict[str, Any] = {
            "pixel_values": pixel_values,
            "vision_features": vision_features,
            "visual_tokens": visual_tokens,
        }
        image_features = self.model.images_of(mm_encoder_outputs, **images)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs={"image": image_features},
            **{**kwargs, "return_dict": True},  # whatever the config says: here it is read by name
        )
        values: dict[str, Any] = {}
        if labels is not None:
            inputs = inputs_embeds if input_ids is None else input_ids
            implementation = loss_implementation or ("fused" if skip_logits else "plain")
            weights = [
                getattr(self.config, name) if given is None else given
                for name, given in (
                    ("visual_loss_weight", visual_loss_weight),
                    ("length_loss_weight", length_loss_weight),
                    ("choice_loss_weight", choice_loss_weight),
                )
            ]
            positions = self._predicted_positions(inputs, labels, image_features, attention_mask, position_ids)
            values = self._losses(
                outputs.last_hidden_state, labels, image_features, positions, weights,
                num_items_in_batch, num_visual_items, implementation,
            )  # fmt: skip
        elif predict_visual_tokens:
            last = outputs.last_hidden_state[:, -1]
            values["visual_predictions"] = self._visual_predictions(last)
            if self.token_bank is not None:
                values["token_queries"] = self.token_bank.queries(last)
        logits = None if skip_logits else self._logits(outputs, logits_to_keep)
        return outputs.with_head(values.pop("loss", None), logits, **values)

    def _visual_predictions(self, states: torch.Tensor) -> torch.Tensor:
        """The visual tokens that states predict, which may be of a lower dtype than the projection."""
        return self.output_projection(states.to(computing_dtype(self.output_projection)))

    def _predicted_positions(self, inputs, labels, image_features, attention_mask, position_ids) -> dict[str, Any]:
        """Which positions the losses are about: placeholders, unused ones, and visual tokens that are written."""
        if labels.shape != inputs.shape[:2]:
            raise ValueError(
                f"labels have the shape {tuple(labels.shape)}, expected that of the input ids, "
                f"{tuple(inputs.shape[:2])}: a label for each token, -100 where there is none."
            )
        placeholders = self.model.find_placeholders(inputs)
        unused = torch.zeros_like(placeholders)
        if image_features is not None and image_features.token_mask is not None:
            unused = unused.masked_scatter(placeholders, ~image_features.token_mask.to(placeholders.device))
        named = labels == self.config.image_token_id
        if bool((placeholders & (labels != IGNORED) & ~named).any()) or bool((named & ~placeholders).any()):
            raise ValueError(
                f"Placeholders of images are {self.config.image_token_id}, and so are their labels where an image is "
                "to be written, elsewhere -100; found a placeholder with the label of a word, or a word with that of "
                "a placeholder."
            )
        real = placeholders & ~unused
        written = predicted_image_positions(real & named, attention_mask, position_ids)
        return {"placeholders": placeholders, "written": written}

    def _losses(
        self, hidden_states, labels, image_features, positions, weights, num_items, num_visual_items, implementation
    ) -> dict[str, Any]:
        """The losses, their sum, and what was predicted of images."""
        placeholders, written = positions["placeholders"], positions["written"]
        labels, written = labels.to(hidden_states.device), written.to(hidden_states.device)
        text = labels[:, 1:].masked_fill(placeholders[:, 1:].to(labels.device), IGNORED)
        loss_lm = self._text_loss(hidden_states[:, :-1], text, num_items, implementation)
        states = hidden_states[:, :-1][written[:, 1:]]
        predictions = self._visual_predictions(states)
        targets = predictions.new_zeros(predictions.shape)
        if image_features is not None and bool(written.any()):
            if image_features.tokens is None:
                raise ValueError(
                    "mm_encoder_outputs hold what the language model reads alone, but images that are to be written "
                    "are compared with their visual tokens: give the output of get_image_features, or the images."
                )
            targets = image_features.tokens.flatten(0, 1).to(written.device)[written[placeholders]]
        loss_visual = visual_regression_loss(predictions, targets, num_items=num_visual_items)
        loss_length = hidden_states.new_zeros(())
        visual_weight, length_weight, choice_weight = weights
        if length_weight:
            more = labels[:, 1:].masked_fill(~written[:, 1:], IGNORED)
            loss_length = self._text_loss(hidden_states[:, :-1], more, num_visual_items, implementation)
        loss = loss_lm + visual_weight * loss_visual + length_weight * loss_length
        of_choices: dict[str, Any] = {}
        if self.token_bank is not None:
            found = self._choice_losses(states, placeholders, written, image_features)
            loss_choice = found.sum() / (max(len(found), 1) if num_visual_items is None else num_visual_items)
            loss = loss + choice_weight * loss_choice
            of_choices = {"loss_choice": loss_choice, "choice_losses": found}
        return {
            "loss": loss,
            "loss_lm": loss_lm,
            "loss_visual": loss_visual,
            "loss_length": loss_length,
            "visual_positions": written,
            "visual_predictions": predictions,
            **of_choices,
        }

    @torch.compiler.disable  # its loops over chunks gain nothing from it
    def _text_loss(self, hidden_states, labels, num_items, implementation) -> torch.Tensor:
        predicts = labels != IGNORED
        weight, bias = matrix_of(self.lm_head, hidden_states.shape[-1], hidden_states)
        if self.config.trained_token_rows:
            weight = self._rows_of_head().in_matrix(weight)
        return language_modeling_loss(
            hidden_states[predicts].to(weight.device),
            weight,
            labels[predicts].to(weight.device),
            num_items=num_items,
            implementation=implementation,
            lm_head_bias=bias,
            transform_logits=logit_transform(self.config.text_config),
        )


__all__ = ["SetokimForConditionalGeneration", "SetokimImageFeatures", "SetokimModel", "SetokimOutput"]
