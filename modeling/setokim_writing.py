"""What Setokim writes: text with images in it, images for prompts and instructions, masks for expressions."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessorList

from .image_detokenizer import Generators
from .multimodal_generation import MultimodalForGeneration
from .outputs_setokim import SetokimGenerateOutput, SetokimImages, SetokimMasks
from .setokim_generation import ImagesInText, VisualEmission, padded_tokens
from .token_bank import TokenChooser


class SetokimWriting(MultimodalForGeneration):
    """Generation of text, images and masks, for a model with an `output_projection` from states to visual tokens."""

    output_projection: nn.Linear
    token_bank: Any

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        *,
        write_images: bool | None = None,
        max_image_tokens: int | None = None,
        max_images: int | None = None,
        choose_tokens: bool | None = None,
        token_temperature: float = 0.0,
        token_generator: Generators = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs,
    ):
        """
        `GenerationMixin.generate`, which writes text and images. Where the model writes `[Img]`, or the prompt ends in
        it, visual tokens follow one by one: each is the output projection of the last state, or, by a model with a
        [`TokenBank`], one of the bank or of the prompt's images, where these are given and not their cache alone; and
        is read back through the input projection. Behind each the model chooses, by its own scores, between one more
        (the placeholder of images) and `[/Img]`, which ends the image; greedily or by sampling, as it chooses words.
        Rows of a batch may write text and images at the same time. Where the prompt's images have fewer visual tokens
        than placeholders, see [`MultimodalForGeneration.generate`].

        Args:
            inputs (`torch.LongTensor` of shape `(batch, length)`, *optional*): the prompt, also as `input_ids`.
            write_images (`bool`, *optional*):
                Whether images may be begun. By default where one token is written at a time, with a key-value cache:
                beams and assistants write text alone.
            max_image_tokens (`int`, *optional*): most visual tokens of an image; by default those of the tokenizer.
            max_images (`int`, *optional*): most images that a row begins; by default any number.
            choose_tokens (`bool`, *optional*):
                Whether visual tokens are chosen among real ones; by default where the model has a bank of them.
            token_temperature (`float`, *optional*, defaults to 0.0): of these choices; 0 takes the best each time.
            token_generator (`torch.Generator` or a list of them, *optional*):
                Source of these choices' randomness, one for all rows or for each; by default torch's.
            logits_processor (`LogitsProcessorList`, *optional*): for text, before it is decided on images.
            kwargs: as in [`GenerationMixin.generate`], and images as in `forward`.

        Returns:
            `torch.LongTensor` of shape `(num_sequences, length)`: prompt and text, with a placeholder for each visual
            token; or, with `return_dict_in_generate=True`, a [`SetokimGenerateOutput`] with the tokens themselves.

        Raises:
            ValueError: if images are wanted where none can be written, budgets are below 1, tokens are to be chosen
                or drawn by a model without a bank, the bank is empty, there are several generators and not one for
                each sequence, or the prompt has placeholders and no images are given.
        """
        self._check_images_given(inputs, kwargs)
        emission = self._emission(write_images, max_image_tokens, max_images, kwargs)
        chooses = self.token_bank is not None if choose_tokens is None else choose_tokens
        if chooses and self.token_bank is None:
            raise ValueError(
                "choose_tokens needs a model with a bank of tokens, and this one regresses them: train it with "
                "token_bank_size, or leave choose_tokens out."
            )
        if token_temperature and not chooses:
            raise ValueError(
                f"token_temperature is {token_temperature}, but tokens are regressed, which draws nothing: leave it "
                "out, or give a model with a bank of tokens."
            )
        if emission is not None and chooses:
            input_ids = kwargs.get("input_ids") if inputs is None else inputs
            prompts = self._tokens_of_prompts(input_ids, kwargs)
            emission.chooser = TokenChooser(self.token_bank, prompts, token_temperature, token_generator)
        processors = LogitsProcessorList([*(logits_processor or []), ImagesInText(emission, self.config)])
        if emission is None:
            return super().generate(inputs, logits_processor=processors, **kwargs)
        inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
        has_ids = inputs is not None and not inputs.is_floating_point()
        prompt_length = inputs.shape[1] if has_ids else 0
        kwargs.setdefault("disable_compile", True)  # steps differ in whether they read visual tokens
        result = super().generate(inputs, logits_processor=processors, visual_emission=emission, **kwargs)
        if isinstance(result, torch.Tensor):
            return result
        return SetokimGenerateOutput(**result, visual_tokens=emission.written(result.sequences, prompt_length))

    def _check_images_given(self, inputs, kwargs) -> None:
        """Placeholders that nothing takes the place of would be read as the word that they are."""
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        given = (*self.model.image_inputs, "mm_encoder_outputs", "inputs_embeds")
        if input_ids is None or input_ids.is_floating_point() or any(kwargs.get(name) is not None for name in given):
            return
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            input_ids = input_ids[:, -1:]  # what comes before was read
        if num_placeholders := int((input_ids == self.config.image_token_id).sum()):
            raise ValueError(
                f"The prompt has {num_placeholders} placeholders of visual tokens that are not known: give its images "
                "(pixel_values, or visual_tokens of those that the model wrote). An image that max_new_tokens has cut "
                "off is not gone on with: give more, or a smaller max_image_tokens."
            )

    def _emission(self, write_images, max_image_tokens, max_images, kwargs) -> VisualEmission | None:
        most = self.model.visual_tokenizer.max_num_tokens if max_image_tokens is None else max_image_tokens
        for name, value in (("max_image_tokens", most), ("max_images", max_images)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more, or write_images=False for text alone.")
        obstacle = self._obstacle_to_images(kwargs)
        if write_images and obstacle is not None:
            raise ValueError(f"Images are written one token at a time with a key-value cache, and {obstacle}.")
        writes = obstacle is None if write_images is None else write_images
        return VisualEmission(self.config, most, max_images) if writes else None

    def _tokens_of_prompts(self, input_ids, kwargs) -> list[torch.Tensor] | None:
        """The visual tokens of the images of each prompt. What was encoded for it is left among the arguments."""
        if input_ids is None or input_ids.is_floating_point():
            return None
        features = self._pop_images(kwargs)
        if features is None:
            return None
        kwargs["mm_encoder_outputs"] = {"image": features}
        if features.tokens is None or features.token_mask is None:
            return None
        images = [tokens[kept] for tokens, kept in zip(features.tokens, features.token_mask)]
        numbers = (input_ids == self.config.image_token_id).sum(1) // features.tokens.shape[1]
        parts = iter(images)
        none = features.tokens[0, :0]
        # Where there are more placeholders than images, reading the prompt says so.
        return [torch.cat([none, *islice(parts, number)]) for number in numbers.tolist()]

    def _obstacle_to_images(self, kwargs) -> str | None:
        defaults = kwargs.get("generation_config") or self.generation_config
        chosen = {
            name: kwargs[name] if name in kwargs else getattr(defaults, name, None)
            for name in ("num_beams", "use_cache", "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers")
        }
        if (chosen["num_beams"] or 1) > 1:
            return f"num_beams is {chosen['num_beams']}: give num_beams=1"
        if chosen["use_cache"] is False:
            return "use_cache is False: leave it out"
        others = [name for name in ("prompt_lookup_num_tokens", "penalty_alpha", "dola_layers") if chosen[name]]
        others += [name for name in ("assistant_model", "custom_generate") if kwargs.get(name) is not None]
        return f"{others[0]} asks for another way to generate: leave it out" if others else None

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, visual_emission=None, is_first_iteration=False, **kwargs
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if visual_emission is None:
            return model_inputs
        model_inputs["predict_visual_tokens"] = True
        last = input_ids[:, -1:]
        if last.shape[1]:  # else the prompt was given as embeddings
            visual_emission.accept(last[:, 0])
        written = last == self.config.image_token_id
        if is_first_iteration or not bool(written.any()):
            return model_inputs
        embeddings = self.get_input_embeddings()(last)
        tokens = visual_emission.predictions[-1].to(self.model.input_projection.weight.device)
        visual = self.model.project(tokens).unsqueeze(1).to(embeddings)
        model_inputs["input_ids"] = None
        model_inputs["inputs_embeds"] = torch.where(written.unsqueeze(-1).to(embeddings.device), visual, embeddings)
        return model_inputs

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        if (emission := model_kwargs.get("visual_emission")) is not None:
            emission.note(outputs.visual_predictions, outputs.logits[:, -1], outputs.token_queries)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    @torch.no_grad()
    def write_image(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_image_tokens: int | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The visual tokens of the image that comes behind each prompt.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Prompts, padded on the left. `[Img]` is added where a prompt does not end in it.
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 at padding.
            max_image_tokens (`int`, *optional*): most visual tokens of an image; by default those of the tokenizer.
            kwargs: images of the prompts as in `forward`, and `do_sample`, `temperature`, … as in `generate`.

        Returns:
            `tuple`: tokens `(batch, num_tokens, token_size)`, zero at padding, and the mask of real ones.

        Raises:
            ValueError: if prompts are padded on the right, the budget is below 1, or the tokens that were written are
                not finite.
        """
        start = self.config.image_start_token_id
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("Prompts are padded on the right, and images are written behind them: pad on the left.")
        if not bool((input_ids[:, -1] == start).all()):
            if bool((input_ids[:, -1] == start).any()):
                raise ValueError("Some prompts end in [Img] and some do not: let all or none of them.")
            input_ids = nn.functional.pad(input_ids, (0, 1), value=start)
            attention_mask = None if attention_mask is None else nn.functional.pad(attention_mask, (0, 1), value=1)
        most = self.model.visual_tokenizer.max_num_tokens if max_image_tokens is None else max_image_tokens
        output = self.generate(
            input_ids,
            **{"do_sample": False, **kwargs},
            attention_mask=attention_mask,
            write_images=True,
            max_image_tokens=most,
            max_new_tokens=most,
            eos_token_id=self.config.image_end_token_id,
            return_dict_in_generate=True,
        )
        tokens, mask = padded_tokens([images[0] for images in output.visual_tokens])
        if not bool(tokens.isfinite().all()):
            raise ValueError(
                "The visual tokens that the model wrote are not finite: its weights may be damaged, or overflow in "
                f"{self.dtype}."
            )
        return tokens, mask

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        **kwargs,
    ) -> SetokimImages:
        """
        Writes an image behind each prompt and draws it (SeTok, Section 2.2): visual tokens, then the feature mapper
        and the diffusion model.

        Args:
            input_ids, attention_mask: prompts, as in [`SetokimWriting.write_image`].
            generator (`torch.Generator` or a list of them, *optional*):
                Source of the choices of tokens, where a `token_temperature` draws them, and of the diffusion's noise.
            num_inference_steps (`int`, *optional*): steps of the diffusion.
            guidance_scale (`float`, *optional*): of its classifier-free guidance.
            kwargs: of [`SetokimWriting.write_image`].

        Returns:
            [`SetokimImages`].

        Raises:
            ValueError: if SeTok has no detokenizer; and as [`SetokimWriting.write_image`].
        """
        if self.model.setok.detokenizer is None:
            raise ValueError(
                "This model draws no images, because its SeTok has no detokenizer: compose it from a SeTok that was "
                "trained with one (SeTokConfig(detokenizer_config=…))."
            )
        tokens, mask = self.write_image(input_ids, attention_mask, **{"token_generator": generator, **kwargs})
        images = self.model.setok.reconstruct(
            tokens, mask, generator=generator, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        return SetokimImages(images=images, tokens=tokens, mask=mask)

    def edit_images(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, **kwargs
    ) -> SetokimImages:
        """
        Writes the image that an instruction makes of another one. The source is read in the prompt.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): prompts with the source image and instruction.
            pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`, *optional*):
                Source images; or another form of them, as in `forward`.
            kwargs: of [`SetokimWriting.generate_images`].

        Returns:
            [`SetokimImages`].

        Raises:
            ValueError: if there are no source images; and as [`SetokimWriting.generate_images`].
        """
        names = self.model.image_inputs + ("mm_encoder_outputs",)
        if pixel_values is None and all(kwargs.get(name) is None for name in names):
            raise ValueError(
                "There is no source image to edit: give pixel_values, or generate_images without a source."
            )
        return self.generate_images(input_ids, pixel_values=pixel_values, **kwargs)

    @torch.no_grad()
    def segment(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
        threshold: float = 0.5,
        **kwargs,
    ) -> SetokimMasks:
        """
        The masks of what expressions refer to: for each the model writes one visual token between `[Img]` and
        `[/Img]`, which the mask decoder turns, with the patch features, into a mask.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): prompts with one image and an expression each.
            pixel_values (`torch.FloatTensor` of shape `(batch, num_channels, height, width)`): an image for each.
            attention_mask (`torch.LongTensor` of shape `(batch, length)`, *optional*): 0 at padding.
            sizes (`list[tuple[int, int]]`, *optional*):
                Height and width of the mask of each expression in pixels, as those of the image before it was
                prepared; by default those of `pixel_values`.
            threshold (`float`, *optional*, defaults to 0.5): probability from which a pixel is inside.
            kwargs: of `generate`.

        Returns:
            [`SetokimMasks`].

        Raises:
            ValueError: if there are not as many images, or sizes, as expressions.
        """
        features = self.model.images_of(
            kwargs.pop("mm_encoder_outputs", None), pixel_values=pixel_values,
            **{name: kwargs.pop(name, None) for name in self.model.image_inputs[1:]},
        )  # fmt: skip
        num_images = 0 if features is None or features.patch_features is None else len(features.patch_features)
        per_row = (input_ids == self.config.image_token_id).sum(1).tolist()
        if num_images != len(input_ids) or len(set(per_row)) != 1:
            raise ValueError(
                f"There are {len(input_ids)} expressions and {num_images} images with patches, and the prompts have "
                f"{per_row} placeholders: give each expression the one image that it is about, as pixel_values."
            )
        if sizes is not None and len(sizes) != len(input_ids):
            raise ValueError(f"There are {len(sizes)} sizes for {len(input_ids)} expressions: give one for each.")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}: give a probability between 0 and 1.")
        tokens, mask = self.write_image(
            input_ids,
            attention_mask,
            max_image_tokens=1,
            choose_tokens=False,  # the token of a mask is none of an image
            mm_encoder_outputs={"image": features},
            **kwargs,
        )
        logits = self.model.setok.decode_masks(tokens, mask, features.patch_features, features.grid_size)
        if sizes is None and pixel_values is not None:
            sizes = [(pixel_values.shape[-2], pixel_values.shape[-1])] * len(logits)
        resized = [image.float() for image in logits[:, 0]]
        if sizes is not None:
            resized = [
                nn.functional.interpolate(image[None, None], size=tuple(size), mode="bilinear")[0, 0]
                for image, size in zip(resized, sizes)
            ]
        cut = torch.logit(torch.tensor(threshold)).item()
        return SetokimMasks(masks=[image >= cut for image in resized], mask_logits=resized, tokens=tokens)


__all__ = ["SetokimWriting"]
