"""Composed models with a language modelling head: reading out, and generating from prompts with images."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from .compact_prompts import compact_arguments, with_given_prompt
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

    def _logits(self, outputs: Any, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Scores at the given positions, computed once for each position that was read."""
        hidden_states, compact = outputs.last_hidden_state, outputs.compact
        if compact is not None and isinstance(logits_to_keep, int) and logits_to_keep == 0:
            return compact.restore(self.compute_logits(compact.take(hidden_states)))
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.compute_logits(hidden_states[:, positions])

    def _read_out(
        self,
        outputs: Any,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        skip_logits: bool,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> Any:
        """The output of a causal language model with its scores, or with its loss on the labels, or with both."""
        hidden_states, labels = outputs.last_hidden_state, self._real_labels(labels, outputs)
        arguments: dict[str, Any] = {"num_items_in_batch": num_items_in_batch}
        if labels is not None and skip_logits:
            predicts = torch.zeros_like(labels, dtype=torch.bool)
            predicts[:, :-1] = labels[:, 1:] != -100
            logits = self.compute_logits(hidden_states[predicts])
            arguments["shift_labels"] = labels[:, 1:][predicts[:, :-1]]
        else:
            logits = self._logits(outputs, logits_to_keep)
        loss = None
        if labels is not None:
            text_config: Any = self.config.text_config
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=text_config.vocab_size, **arguments)
        return outputs.with_head(loss, None if labels is not None and skip_logits else logits)

    @staticmethod
    def _real_labels(labels: torch.Tensor | None, outputs: Any) -> torch.Tensor | None:
        """Labels without those of placeholders that images left unused, which nobody read."""
        if labels is None or outputs.compact is None or labels.shape != outputs.compact.unused.shape:
            return labels
        return labels.masked_fill(outputs.compact.unused.to(labels.device), -100)

    def _maybe_prepare_encoder_kwargs_for_generation(self, inputs_tensor, model_kwargs, *args, **kwargs):
        # In place of transformers' own, which encodes no cached features.
        image_features = self._pop_images(model_kwargs)
        if image_features is None:
            return model_kwargs
        self.model.get_placeholder_mask(inputs_tensor, image_features)
        # From here on an image is a list of tokens, one for each placeholder.
        per_image = image_features.per_image()
        model_kwargs["mm_encoder_outputs"] = {"image": self.model.image_features_class(pooler_output=per_image)}
        return model_kwargs

    def _pop_images(self, kwargs: dict[str, Any]) -> Any:
        """The features of the images among the arguments of a generation, which then lack them."""
        images = {name: kwargs.pop(name, None) for name in self.model.image_inputs}
        return self.model.images_of(**images, mm_encoder_outputs=kwargs.get("mm_encoder_outputs"))

    @torch.no_grad()
    def generate(self, inputs=None, **kwargs):
        """
        `GenerationMixin.generate`. Where images have fewer visual tokens than placeholders, the prompt is read without
        the others, so that key-value cache and time follow the real number of tokens; the sequences that come back
        begin with the prompt as it was given, and lengths that count the prompt (`max_length`, `min_length`) mean
        that one. An encoder-decoder language model generates by itself, from merged embeddings.
        """
        if self.config.is_encoder_decoder:
            return self._generate_from_encoder(inputs, kwargs)
        if not self.model.visual_tokenizer.variable_num_tokens:
            return super().generate(inputs, **kwargs)
        if inputs is not None:
            kwargs["inputs_embeds" if inputs.is_floating_point() else "input_ids"] = inputs
        given: Any = kwargs.get("input_ids")
        prompt = compact_arguments(self.model, kwargs, self._pop_images(kwargs), self.generation_config)
        result = super().generate(**kwargs)
        return result if prompt is None else with_given_prompt(result, given, prompt, kwargs.get("past_key_values"))

    def _generate_from_encoder(self, inputs, kwargs: dict[str, Any]) -> Any:
        input_ids = kwargs.pop("input_ids", inputs)
        images = self._pop_images(kwargs)
        kwargs.pop("mm_encoder_outputs", None)
        inputs_embeds, attention_mask, _ = self.model.embed_inputs(
            input_ids, kwargs.pop("inputs_embeds", None), kwargs.pop("attention_mask", None), images
        )
        if (generation_config := kwargs.pop("generation_config", None)) is None:
            generation_config = copy.deepcopy(self.generation_config)
            kwargs = generation_config.update(**kwargs)
        kwargs["generation_config"] = generation_config
        return self.model.language_model.generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)


__all__ = ["MultimodalForGeneration"]
