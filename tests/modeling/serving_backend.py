"""
What vLLM's Transformers modelling backend does with a model and its processor, step for step and without vLLM
(vllm-project/vllm, vllm/model_executor/models/transformers/base.py, multimodal.py and causal.py): linear layers and
embeddings are replaced by others, attention by its own, images are merged outside of the model, and one unpadded row
is read without a mask.
"""

import contextlib
import copy
import re

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AttentionInterface, AutoModel

ATTENTION = "vllm"


class ServedLinear(nn.Module):
    """As `ReplicatedLinear`: a weight, a bias and a call, and nothing else of `nn.Linear`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(states, self.weight, self.bias)


class ServedEmbedding(nn.Module):
    """As `VocabParallelEmbedding`: its matrix has rows beyond the vocabulary."""

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = vocab_size, width
        self.weight = nn.Parameter(torch.empty(-(-(vocab_size + 1) // 64) * 64, width))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(input_ids, self.weight)


def served_attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
    """Causal attention of one row, by the instance of the layer."""
    assert attention_mask is None, "the backend knows by itself who attends to whom"
    attention_instances[module.layer_idx] += 1
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    update = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return update.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def serving_attention():
    """The attention of a server, known to transformers for a while."""
    AttentionInterface.register(ATTENTION, served_attention)
    try:
        yield
    finally:
        AttentionInterface._global_mapping.pop(ATTENTION)


class ServingBackend:
    """A model as a server holds it: made from its config on no device, then filled with the weights of its folder."""

    def __init__(self, config, weights: dict[str, torch.Tensor]):
        self.config = copy.deepcopy(config)
        self.text_config = self.config.get_text_config()
        assert self.text_config is not self.config, "no multi-modal model"
        self.text_config._attn_implementation = ATTENTION
        with init_empty_weights(include_buffers=False):
            self.model = AutoModel.from_config(self.config)
        self._replace_linear_layers(self.model)
        self.model.set_input_embeddings(
            ServedEmbedding(self.text_config.vocab_size, self.model.get_input_embeddings().weight.shape[1])
        )
        self.unknown = self._load(weights)
        self.model.eval()
        self.attention_instances = dict.fromkeys(range(self.text_config.num_hidden_layers), 0)

    def _replace_linear_layers(self, module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, ServedLinear(child))
            else:
                self._replace_linear_layers(child)

    def _load(self, weights: dict[str, torch.Tensor]) -> set[str]:
        """Fills the model; returns the names of weights for which it has no place."""
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu").fill_(torch.nan)))
        ignored = [re.compile(pattern) for pattern in self.model._keys_to_ignore_on_load_unexpected or ()]
        places, unknown = dict(self.model.named_parameters()) | dict(self.model.named_buffers()), set()
        for name, weight in weights.items():
            if name.startswith("lm_head."):
                continue
            if (place := places.get(name.removeprefix("model."))) is not None:
                place.data[: len(weight)] = weight
            elif not any(pattern.search(name) for pattern in ignored):
                unknown.add(name)
        self.lm_head = weights.get("lm_head.weight", self.model.get_input_embeddings().weight)
        self.lm_head = self.lm_head[: self.text_config.vocab_size]
        return unknown

    @torch.no_grad()
    def image_embeddings(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """What the images become: a matrix each."""
        features = self.model.get_image_features(pixel_values).pooler_output
        return list(features)

    @torch.no_grad()
    def logits(self, row: list[int], images: list[torch.Tensor], image_token_id: int) -> torch.Tensor:
        """Scores of the vocabulary at each position of one row, `(length, vocab_size)`."""
        input_ids = torch.tensor(row)
        embeddings = self.model.get_input_embeddings()(input_ids)
        placeholders = input_ids == image_token_id
        if images:
            flattened = torch.cat(images)
            if len(flattened) != placeholders.sum():
                raise ValueError(f"{len(flattened)} multimodal tokens for {int(placeholders.sum())} placeholders")
            embeddings[placeholders] = flattened
        outputs = self.model(
            input_ids=None,
            inputs_embeds=embeddings[None],
            use_cache=False,
            position_ids=torch.arange(len(row))[None],
            attention_instances=self.attention_instances,
            return_dict=False,
        )
        return outputs[0][0] @ self.lm_head.t()


def prompt_by_replacements(processor, prompt: str, images) -> list[int]:
    """Ids of a prompt as a server makes them: tokenised with one placeholder for each image, then each replaced."""
    written = processor(
        images=images,
        text=processor.image_token * len(images),
        return_tensors="pt",
        return_text_replacement_offsets=True,
    )
    (offsets,) = written["text_replacement_offsets"]
    assert [entry["type"] for entry in offsets] == ["image"] * len(images)
    encode = processor.tokenizer.encode
    replacements = iter([encode(entry["replacement"], add_special_tokens=False) for entry in offsets])
    ids = []
    for token_id in encode(prompt):
        ids += next(replacements) if token_id == processor.image_token_id else [token_id]
    return ids
