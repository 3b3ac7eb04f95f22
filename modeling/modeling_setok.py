"""SeTok with its decoders, as stage I trains it: tokens become the image again, and every token a mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_setok import Phase, SeTokConfig, check_phase
from .base_checkpoints import lasting_name, load_vision_tower, naming_entry
from .base_weights import require_fetched
from .completed_model import CompletedPreTrainedModel, expected_shapes, quiet_loading
from .diffusion_parts import DiffusionParts, load_diffusion_parts
from .image_detokenizer import Generators, ImageDetokenizer
from .mask_decoder import MaskDecoder
from .mask_matching import match_masks
from .mask_supervision import mask_losses
from .modeling_setok_vision import SeTokVisionModel
from .object_contrast import (
    object_contrast_loss,
    patch_objects,
    patch_weights_by_coverage,
    squared_kernel_scale,
)
from .object_mask_batches import batch_object_masks, resize_object_masks
from .setok_composition import compose_setok_config
from .trainable_parts import parameters_to_train


@dataclass
class SeTokForPreTrainingOutput(ModelOutput):
    """
    Output of [`SeTokForPreTraining`]. N is the number of patches, M the number of visual tokens, the largest of the
    batch.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Weighted sum of the terms below, with the weights of the config; `None` if there is none of them.
        loss_reconstruction (`torch.FloatTensor` of shape `()`, *optional*): denoising loss.
        loss_mask_bce (`torch.FloatTensor` of shape `()`, *optional*): binary cross-entropy of matched masks.
        loss_mask_dice (`torch.FloatTensor` of shape `()`, *optional*): dice loss of matched masks.
        loss_mask_consistency (`torch.FloatTensor` of shape `()`, *optional*): of clusters with matched objects.
        loss_object_contrast (`torch.FloatTensor` of shape `()`, *optional*): see [`object_contrast_loss`].
        loss_preview, loss_placement (`torch.FloatTensor` of shape `()`, *optional*): see [`ImageDetokenizerOutput`].
        tokens (`torch.FloatTensor` of shape `(batch, num_tokens, output_size)`): visual tokens; padding is zero.
        mask (`torch.BoolTensor` of shape `(batch, num_tokens)`): True at real tokens.
        mask_logits (`torch.FloatTensor` of shape `(batch, num_tokens, height, width)`, *optional*):
            Predicted mask of every token, before the sigmoid; not computed in the phase `"reconstruction"`.
        matches (`torch.LongTensor` of shape `(3, num_pairs)`, *optional*):
            Image, token and object of every matched pair.
        assignment (`torch.LongTensor` of shape `(batch, num_patches)`): the token that each patch went to.
        cluster_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`):
            Membership of patches in tokens; sums to 1 over tokens at every patch.
        soft_masks (`torch.FloatTensor` of shape `(batch, num_tokens, num_patches)`, *optional*):
            The differentiable weights of the clusters.
        scores (`torch.FloatTensor` of shape `(batch, num_patches)`): how strongly each patch asked to be a seed.
        centers (`torch.LongTensor` of shape `(batch, num_tokens)`): the patch that each cluster formed around.
        patch_features (`torch.FloatTensor` of shape `(batch, num_patches, hidden_size)`): of the vision tower.
        grid_size (`tuple[int, int]`): height and width of the images, in patches.
    """

    loss: torch.Tensor | None = None
    loss_reconstruction: torch.Tensor | None = None
    loss_mask_bce: torch.Tensor | None = None
    loss_mask_dice: torch.Tensor | None = None
    loss_mask_consistency: torch.Tensor | None = None
    loss_object_contrast: torch.Tensor | None = None
    loss_preview: torch.Tensor | None = None
    loss_placement: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    matches: torch.Tensor | None = None
    assignment: torch.Tensor | None = None
    cluster_masks: torch.Tensor | None = None
    soft_masks: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    centers: torch.Tensor | None = None
    patch_features: torch.Tensor | None = None
    grid_size: tuple[int, int] | None = None


class SeTokForPreTraining(CompletedPreTrainedModel):
    """
    The tokenizer with the decoders of stage I (SeTok, Section 2.2): the detokenizer, which draws the image that tokens
    stand for, and the mask decoder, which draws the mask of each.

    Args:
        config ([`SeTokConfig`]): without a `detokenizer_config` it has no detokenizer.

    Raises:
        ImportError: if there is a detokenizer and the extra `generation` is not installed. For its tokens and masks
            a folder is loaded without: `from_pretrained(folder, detokenizer_config=None)`.
    """

    config: SeTokConfig
    config_class = SeTokConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    trainable_parts = {
        "vision": "vision_model.vision_tower",
        "clustering": (
            "vision_model.tokenizer.cluster_layers",
            "vision_model.tokenizer.cluster_projection",
            "vision_model.tokenizer.log_kernel_scale",
        ),
        "merger": "vision_model.tokenizer.merger",
        "mask_decoder": "mask_decoder",
        "mapper": ("detokenizer.mapper", "detokenizer.query_grid"),
        "unet": "detokenizer.unet",
        "vae": "detokenizer.vae",
    }
    optional_parts = {"detokenizer_config": "detokenizer."}
    match_masks = staticmethod(match_masks)

    def __init__(self, config: SeTokConfig):
        super().__init__(config)
        parts: Any = config
        self.vision_model = SeTokVisionModel(parts.vision_config)
        self.mask_decoder = MaskDecoder(parts.mask_decoder_config)
        self.detokenizer: Any = None
        if parts.detokenizer_config is not None:
            self.detokenizer = ImageDetokenizer(parts.detokenizer_config)
        self.post_init()

    @classmethod
    def from_vision_pretrained(
        cls,
        vision: str,
        *,
        diffusion: str | None = None,
        bert: str | None = None,
        dtype: torch.dtype | None = None,
        vision_kwargs: Mapping[str, Any] | None = None,
        diffusion_kwargs: Mapping[str, Any] | None = None,
        **overrides,
    ):
        """
        Composes a model from pretrained parts; clustering, merger and mask decoder are new, and the detokenizer too
        where no diffusion checkpoint is named.

        Args:
            vision (`str`): vision checkpoint: `"vistok:dinov2-small"`, a folder or a Hub id.
            diffusion (`str`, *optional*):
                Folder or Hub id of a diffusion checkpoint in the format of diffusers, such as SD v1.5's: its U-Net,
                VAE and scheduler become those of the detokenizer.
            bert (`str`, *optional*): folder or Hub id of the BERT that the feature mapper starts from.
            dtype (`torch.dtype`, *optional*): of all weights; by default that of the tower.
            vision_kwargs, diffusion_kwargs (`dict`, *optional*): for the `from_pretrained` of each checkpoint.
            overrides: fields of [`SeTokConfig`], or of [`SeTokVisionConfig`] (`max_tokens=32`).

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: if an override is a field of neither, or follows from the checkpoints.
            FetchError: if base weights of vistok are not in the cache; names the command.
            CheckpointError: if a checkpoint is of another kind, truncated or incomplete.
            ImportError: if a detokenizer is wanted and the extra `generation` is not installed.
        """
        require_fetched([name for name in (vision, diffusion, bert) if name is not None])
        rng_state = torch.get_rng_state()
        tower = load_vision_tower(vision, **(vision_kwargs or {}))
        parts = load_diffusion_parts(diffusion, **(diffusion_kwargs or {})) if diffusion is not None else None
        config = compose_setok_config(tower.config, None if parts is None else parts.configs, overrides)
        config.base_models = {"vision": lasting_name(vision)}
        if diffusion is not None:
            config.base_models["diffusion"] = lasting_name(diffusion)
        state_dict = cls._base_state_dict(tower, parts, expected_shapes(cls, config))
        # The caller's seed alone decides on the new weights, whatever loading drew.
        torch.set_rng_state(rng_state)
        with quiet_loading():
            model = super().from_pretrained(None, config=config, state_dict=state_dict, dtype=dtype or tower.dtype)
        if bert is not None:
            if model.detokenizer is None:
                raise ValueError(
                    "bert starts the feature mapper of a detokenizer: give detokenizer_config, or diffusion."
                )
            model.detokenizer.mapper.load_bert(bert)
        model.added_weights = {name for name, _ in model.named_parameters()} - set(state_dict)
        return model.eval()

    @classmethod
    def _completing_weights(cls, config, name, expected):
        if config.detokenizer_config is None:  # which alone is completed by a diffusion checkpoint
            config.base_models = {part: path for part, path in config.base_models.items() if part != "diffusion"}
        require_fetched(config.base_models.values())
        with naming_entry(config.base_models, "vision", name):
            tower = load_vision_tower(config.base_models["vision"])
        parts = None
        if "diffusion" in config.base_models:
            with naming_entry(config.base_models, "diffusion", name):
                parts = load_diffusion_parts(config.base_models["diffusion"])
        return cls._base_state_dict(tower, parts, expected), tower.dtype

    @classmethod
    def _base_state_dict(cls, tower, parts: DiffusionParts | None, expected) -> dict[str, torch.Tensor]:
        """Weights of the base models under the names that they have in this model."""
        weights = {f"vision_model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
        if parts is not None:
            weights |= {f"detokenizer.{name}": tensor for name, tensor in parts.state_dict().items()}
        return {name: tensor for name, tensor in weights.items() if name in expected}

    def train_phase(self, phase: Phase) -> None:
        """
        Freezes the model but for what a sub-phase of stage I trains: see [`SeTokConfig.phase_trainable`].

        Args:
            phase (`"reconstruction"` or `"boundaries"`): I-a or I-b.

        Raises:
            ValueError: if there is no such phase, or it needs a detokenizer and there is none.
        """
        trainable = self.config.phase_trainable(phase)
        self.requires_grad_(False)
        for part, mode in trainable.items():
            opened = parameters_to_train(self, part, mode)
            for parameter in opened.values():
                parameter.requires_grad_(True)
            # What one phase trains is saved with the trained weights after the next one too.
            self.added_weights = getattr(self, "added_weights", set()) | set(opened)

    def get_input_embeddings(self) -> Any:
        return self.vision_model.get_input_embeddings()

    # Without **kwargs: transformers' Trainer takes these as a promise to divide by its num_items_in_batch.
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        target_pixel_values: torch.Tensor | None = None,
        mask_labels: Sequence[torch.Tensor] | torch.Tensor | None = None,
        phase: Phase | None = None,
        generator: Generators = None,
        patch_features: torch.Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
        mask_size: tuple[int, int] | None = None,
        encoded: Any = None,
    ) -> SeTokForPreTrainingOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`, *optional*):
                Images, normalised as the vision tower expects.
            target_pixel_values (`torch.FloatTensor` of shape `(batch, 3, image_size, image_size)`, *optional*):
                The same images as the detokenizer is to draw them, 0 to 1, at its size.
            mask_labels (`list[torch.Tensor]` or `torch.Tensor`, *optional*):
                Masks of the objects of each image, `(num_objects, height, width)`, of the size of `pixel_values`,
                boolean or 0 to 1; or padded with empty masks to `(batch, num_objects, height, width)`. An image may
                have none, and empty ones do not count.
            phase (`"reconstruction"` or `"boundaries"`, *optional*):
                Which terms have to be there: the first takes the reconstruction alone, whatever masks come with it;
                the second takes the masks', and the reconstruction where its images are given. By default every term
                whose targets are given.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of noise and steps of the reconstruction; one for all images, or one for each.
            patch_features, grid_size (*optional*): in place of `pixel_values`: see [`SeTokVisionModel`].
            mask_size (`tuple[int, int]`, *optional*): height and width of `mask_labels`, where these are given at
                another size, as shares of larger pixels; by default that of `pixel_values`.
            encoded ([`SeTokVisionOutput`], *optional*): in place of all of these: what `vision_model` made of them.
                Without its `patch_features` only for the phase `"reconstruction"`.

        Returns:
            [`SeTokForPreTrainingOutput`].

        Raises:
            ValueError: if targets that the phase needs are missing, or targets are of another size; names both sizes.
        """
        self._check_targets(target_pixel_values, mask_labels, phase)
        if mask_labels is not None and mask_size is None:
            if pixel_values is None:
                raise ValueError("Without pixel_values it is not known how large mask_labels are: give mask_size.")
            mask_size = (pixel_values.shape[-2], pixel_values.shape[-1])
        if encoded is None:
            encoded = self.vision_model(pixel_values, patch_features, grid_size, return_dict=True)
        elif encoded.patch_features is None and phase != "reconstruction":
            raise ValueError("encoded has no patch_features, which masks are made of: give them, or pixel_values.")
        terms: dict[str, torch.Tensor] = {}
        mask_logits = matches = None
        if target_pixel_values is not None:
            drawn = self.detokenizer(
                encoded.tokens, encoded.mask, target_pixel_values, generator=generator,
                cluster_masks=encoded.cluster_masks, grid_size=encoded.grid_size, return_dict=True,
            )  # fmt: skip
            terms["reconstruction"] = drawn.loss
            if drawn.preview_loss is not None:
                terms |= {"preview": drawn.preview_loss, "placement": drawn.placement_loss}
        if phase != "reconstruction":
            mask_logits = self.decode_masks(encoded.tokens, encoded.mask, encoded.patch_features, encoded.grid_size)
        if mask_logits is not None and mask_labels is not None and mask_size is not None:
            soft = self.config.consistency_masks == "soft" and encoded.soft_masks is not None
            clusters = encoded.soft_masks if soft else encoded.cluster_masks
            losses = mask_losses(
                mask_logits,
                encoded.mask,
                clusters,
                encoded.grid_size,
                mask_labels,
                mask_size,
                encoded.cluster_masks,
                self.config.cluster_matching_weight,
                match=self.match_masks,
            )
            matches = losses.matches
            terms |= {"mask_bce": losses.bce, "mask_dice": losses.dice, "mask_consistency": losses.consistency}
            if self.config.object_contrast_weight:
                terms["object_contrast"] = self._object_contrast(encoded, mask_labels, mask_size)
        named_terms: dict[str, Any] = {f"loss_{name}": term for name, term in terms.items()}
        found: dict[str, Any] = {name: encoded[name] for name in _OF_VISION_MODEL if name in encoded}
        weighted = [getattr(self.config, f"{name}_weight") * term for name, term in terms.items()]
        return SeTokForPreTrainingOutput(
            loss=torch.stack(weighted).sum() if weighted else None,
            mask_logits=mask_logits,
            matches=matches,
            **named_terms,
            **found,
        )

    def _object_contrast(self, encoded, mask_labels, mask_size) -> torch.Tensor:
        tokenizer, grid_size = self.vision_model.tokenizer, encoded.grid_size
        masks, present = batch_object_masks(mask_labels, mask_size, len(encoded.patch_features))
        coverage = resize_object_masks(masks, grid_size).flatten(2).to(encoded.patch_features.device)
        present = present.to(coverage.device)
        features = tokenizer.cluster_features(encoded.patch_features, grid_size)
        scale = squared_kernel_scale(
            features, tokenizer.kernel_scale(features), tokenizer.config.relative_kernel_scale
        )
        labels, weights = patch_objects(coverage, present), patch_weights_by_coverage(coverage, present)
        return object_contrast_loss(features, labels, scale, weights)

    def reconstruct(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> torch.Tensor:
        """
        Draws the images that visual tokens stand for: of this tokenizer, or emitted by a language model. Arguments,
        result and errors are those of [`ImageDetokenizer.sample`].

        Raises:
            ValueError: if the model has no detokenizer.
        """
        if self.detokenizer is None:
            raise ValueError(
                "This model has no detokenizer and draws no images: give SeTokConfig a detokenizer_config."
            )
        return self.detokenizer.sample(tokens, mask, generator, num_inference_steps, guidance_scale)

    def decode_masks(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        patch_features: torch.Tensor,
        grid_size: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """
        The mask of every visual token, of this tokenizer or emitted by a language model, on an image. Arguments,
        result and errors are those of [`MaskDecoder.forward`].
        """
        return self.mask_decoder(tokens, mask, patch_features, grid_size, size)

    def _check_targets(self, target_pixel_values, mask_labels, phase) -> None:
        if phase is not None:
            check_phase(phase)
        if phase == "reconstruction" and target_pixel_values is None:
            raise ValueError("The phase reconstruction needs target_pixel_values: the images to be drawn, 0 to 1.")
        if phase == "boundaries" and mask_labels is None:
            raise ValueError("The phase boundaries needs mask_labels: the masks of each image's objects.")
        if target_pixel_values is not None and self.detokenizer is None:
            raise ValueError(
                "There is no detokenizer to draw target_pixel_values: give SeTokConfig a detokenizer_config."
            )


_OF_VISION_MODEL = (
    *("tokens", "mask", "assignment", "cluster_masks", "soft_masks", "scores", "centers"),
    *("patch_features", "grid_size"),
)


__all__ = ["SeTokForPreTraining", "SeTokForPreTrainingOutput"]
