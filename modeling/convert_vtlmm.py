"""Conversion of LLaVA-1.5 and VW-LMM as published into VT-LMM, tensor by tensor."""

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import GENERATION_CONFIG_NAME, logging

from ..configuration.configuration_vtlmm import VTLMMConfig
from .atomic_folder import write_folder_atomically
from .checkpoint_shards import DTYPE_NAMES, MAX_SHARD_SIZE, ShardedCheckpoint, ShardWriter
from .completed_model import expected_shapes
from .composition import compose_config, grown_size
from .convert_eva import Conversion
from .modeling_vtlmm import VTLMMForCausalLM
from .published_checkpoints import first_line, refuse_misfits
from .published_llava import PublishedLlava, PublishedNames, has_vocabulary_rows, read_published_config
from .published_llava_tower import PublishedTower, find_published_tower
from .published_tokenizers import load_published_tokenizer
from .trained_weights import CheckpointError

logger = logging.get_logger(__name__)

KINDS = ("llava", "vw-lmm")
"""What is converted: LLaVA-1.5, which has no VM head, and VW-LMM, which has one."""

VM_HEAD = "model.vm_head.weight"

# By language model, the format of conversations that LLaVA-1.5 and VW-LMM were trained with.
CHAT_TEMPLATE_OF = {"llama": "vicuna", "mistral": "mistral"}
_CHUNK = 1 << 22  # numbers that are looked at at once
_ROWS = 512  # of a new weight that are drawn at once


@dataclass(kw_only=True)
class LlavaConversion(Conversion):
    """
    What the conversion of a LLaVA or VW-LMM made.

    Args:
        source (`str`): folder of the checkpoint, on this machine.
        kind (`str`): `"llava"` or `"vw-lmm"`.
        new (`list[str]`): our names of weights that the checkpoint does not have: new and random.
        tokenizer (`PreTrainedTokenizerBase`): knows the placeholder of images.
        chat_template (`str`): name of the format of conversations that the language model was trained with.
        pad_to_square (`bool`): whether images are padded to a square with the mean colour.
        vision (`str`, *optional*): checkpoint that the tower was taken from, where it is none of SOURCE.
    """

    source: str
    kind: str
    new: list[str] = field(default_factory=list)
    tokenizer: Any
    chat_template: str
    pad_to_square: bool
    vision: str | None = None


def convert_llava(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    kind: str | None = None,
    vision: str | None = None,
    text: str | None = None,
    pseudo_image_features: bool | None = None,
    seed: int | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> LlavaConversion:
    """
    Writes a folder that [`VTLMMForCausalLM`] loads from LLaVA-1.5, in the layout of its authors or of transformers,
    or from VW-LMM. The processor is not among it: [`published_llava_processor`] makes it of what is returned. Whoever
    wants it before anything is written does the same in two steps, [`plan_llava_conversion`] and [`LlavaPlan.write`].

    Tensors are read, checked and written one by one, in their dtype. One file of the checkpoint is open at a time:
    mapped into memory or, if it is in PyTorch's format of before version 1.6, read as a whole.

    LLaVA's layout has no embedding for the placeholder of images. Embeddings, LM head and VM head get rows for it, up
    to a multiple of eight, which are the mean of their other rows. In both heads such a row's logit is the mean of the
    others', so by Jensen's inequality k new rows hold at most k / V of the probability of the V others: 0.025 % of Q
    and of P' for eight rows of Vicuna. All else of these distributions is as published.

    Without a VM head, as in LLaVA-1.5, that is stages I and II of VT-LMM (Table 2), a new one is drawn as
    [`VTLMMForCausalLM`] initialises it: the folder is where stage III starts.

    Args:
        source (`str` or `Path`): folder or Hub id of the checkpoint.
        folder (`str` or `Path`): where the result goes, whole or not at all; may not exist yet.
        kind (`str`, *optional*): `"llava"` or `"vw-lmm"`; by default what the checkpoint is.
        vision (`str`, *optional*): the vision tower, a folder or Hub id, of a checkpoint in LLaVA's layout that lacks
            it; by default what its config names.
        text (`str`, *optional*): where the tokenizer is taken from, a folder or Hub id; by default the checkpoint.
        pseudo_image_features (`bool`, *optional*): whether the language model was trained with these in place of
            image features (Eq. 8), as VW-LMM-Vicuna-pif-7b was. By default where "pif" is in the name of the
            checkpoint's architecture or folder, which is how its authors tell
            (pengts/VW-LMM, visual_words/model/builder.py).
        seed (`int`, *optional*): of a new VM head, by default 0; of no use where the checkpoint has one.
        max_shard_size (`int`, *optional*, defaults to 5 GB): bytes of weights in a file that is written.

    Returns:
        [`LlavaConversion`].

    Raises:
        FileNotFoundError: if files are missing; names them.
        FileExistsError: if there is something in the folder.
        CheckpointError: if a file is truncated, the checkpoint is of another kind, its weights are not exactly those
            of its config, or numbers are not finite; lists what is missing, unknown or of another shape.
        ValueError: if the kind is unknown, or an argument does not go with the checkpoint.
    """
    plan = plan_llava_conversion(source, kind, vision, text, pseudo_image_features, seed)
    plan.write(folder, max_shard_size)
    return plan.conversion


@dataclass
class LlavaPlan:
    """
    A conversion whose weights are still to be read: all else is read and checked.

    Args:
        conversion ([`LlavaConversion`]): what is told of it.
        checkpoint ([`ShardedCheckpoint`]): the published weights.
        names ([`PublishedNames`]): what becomes of each.
        tower ([`PublishedTower`]): the vision tower.
        tensors (`dict[str, tuple[torch.Size, torch.dtype]]`): what is written, in this order.
        generation_config (`GenerationConfig`): of the folder.
        seed (`int`): of a new VM head.
    """

    conversion: LlavaConversion
    checkpoint: ShardedCheckpoint
    names: PublishedNames
    tower: PublishedTower
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    generation_config: GenerationConfig
    seed: int

    def write(self, folder: str | os.PathLike, max_shard_size: int = MAX_SHARD_SIZE) -> None:
        """
        Writes the folder, once, tensor by tensor.

        Args:
            folder, max_shard_size: as in [`convert_llava`].

        Raises:
            FileExistsError: if there is something in the folder.
            CheckpointError: if a file is truncated, or numbers are not finite.
        """
        tower, checkpoint, config, source = self.tower, self.checkpoint, self.conversion.config, self.conversion.source
        with write_folder_atomically(folder) as work:
            writer = ShardWriter(work, self.tensors, max_shard_size)
            for name in list(tower.weights):
                _refuse_numbers(tower.name or source, name, tower.weights[name])
                writer.write(name, [tower.weights.pop(name)])
            read = logging.tqdm(checkpoint.read(), total=len(checkpoint.stored), desc="Converting weights")
            for name, weight in read:
                if own := self.names.own.get(name):
                    _refuse_numbers(source, name, weight)
                    is_grown = has_vocabulary_rows(own)
                    writer.write(own, _with_rows(weight, self.tensors[own][0]) if is_grown else [weight])
            for name in self.conversion.new:
                std = getattr(config.text_config, "initializer_range", 0.02)
                writer.write(name, _random_rows(*self.tensors[name], std=std, seed=self.seed))
            writer.finish()
            config.save_pretrained(work)
            self.generation_config.save_pretrained(work)


def plan_llava_conversion(
    source: str | os.PathLike,
    kind: str | None = None,
    vision: str | None = None,
    text: str | None = None,
    pseudo_image_features: bool | None = None,
    seed: int | None = None,
) -> LlavaPlan:
    """
    Reads and checks all of a LLaVA or VW-LMM but the numbers of its weights: see [`convert_llava`], whose arguments
    and errors these are.

    Returns:
        [`LlavaPlan`].
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: expected {' or '.join(KINDS)}.")
    path = _located(source)
    published = read_published_config(path)
    checkpoint = ShardedCheckpoint(path)
    names = PublishedNames(checkpoint.stored)
    kind = _checked_kind(source, kind, VM_HEAD in names.published)
    new = [] if kind == "vw-lmm" else [VM_HEAD]
    if new and pseudo_image_features:
        raise ValueError(
            f"{source} has no VM head to make pseudo image features with: leave them to stage IV of its training."
        )
    if not new and seed is not None:
        raise ValueError(f"{source} has a VM head, and nothing is drawn: leave out the seed {seed} (seed, or --seed).")
    tokenizer = load_published_tokenizer(path, published, text)
    tower = find_published_tower(source, published, names, vision)
    if pseudo_image_features is None:
        is_pif = published.pseudo_image_features or "pif" in Path(source).name.lower()
        pseudo_image_features = kind == "vw-lmm" and is_pif
    chat_template = _chat_template(source, published)
    config = _config(published, names, tower.config, tokenizer, pseudo_image_features)
    config.vm_head_trained = not new
    expected = expected_shapes(VTLMMForCausalLM, config)
    _refuse_other_weights(source, published, names, tower, expected, new)
    tensors = _planned(names, tower, expected, new)
    conversion = LlavaConversion(
        config=config,
        num_parameters=sum(shape.numel() for shape, _ in tensors.values()),
        dropped=names.dropped,
        source=os.fspath(path),
        kind=kind,
        new=new,
        tokenizer=tokenizer,
        chat_template=chat_template,
        pad_to_square=published.pad_to_square,
        vision=tower.name,
    )
    return LlavaPlan(conversion, checkpoint, names, tower, tensors, _generation_config(path, config), seed or 0)


def _located(source: str | os.PathLike) -> Path:
    """The folder of a checkpoint, downloaded where it is one of the Hub."""
    path = Path(source)
    if path.is_dir():
        return path
    name = os.fspath(source)
    if path.exists() or name.count("/") != 1 or name[0] in "./~":
        what = "is a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{name} {what}: expected the folder, or the Hub id, of a LLaVA-1.5 or VW-LMM.")
    try:
        files = ["*.json", "*.model", "*.safetensors"]
        found = Path(snapshot_download(name, allow_patterns=files))
        if not any(found.glob("*.safetensors")):
            found = Path(snapshot_download(name, allow_patterns=[*files, "pytorch_model*"]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} is no folder here and cannot be downloaded from the Hub: give the folder that holds it. "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    return found


def _checked_kind(source: str | os.PathLike, kind: str | None, has_head: bool) -> str:
    if kind == "llava" and has_head:
        raise ValueError(f"{source} has a VM head (vm_head.weight): it is a VW-LMM, convert it with kind vw-lmm.")
    if kind == "vw-lmm" and not has_head:
        raise CheckpointError(
            f"{source} has no VM head (vm_head.weight): it is no VW-LMM. Kind llava gives it a new one, for stage III."
        )
    return "vw-lmm" if has_head else "llava"


def _chat_template(source: str | os.PathLike, published: PublishedLlava) -> str:
    model_type = published.text_config.model_type
    if model_type not in CHAT_TEMPLATE_OF:
        raise CheckpointError(
            f"The language model of {source} is a {model_type}: how LLaVA-1.5 and VW-LMM write conversations is known "
            f"of {' and '.join(CHAT_TEMPLATE_OF)} only."
        )
    return CHAT_TEMPLATE_OF[model_type]


def _config(
    published: PublishedLlava,
    names: PublishedNames,
    vision_config: PreTrainedConfig,
    tokenizer: Any,
    pseudo_image_features: bool,
) -> VTLMMConfig:
    text_config: Any = copy.deepcopy(published.text_config)
    image_token_id = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    if image_token_id >= text_config.vocab_size:
        text_config.vocab_size = grown_size(image_token_id)
    adapter: dict[str, Any] = {"hidden_act": published.hidden_act}
    if (first := names.stored_of("model.adapter.linear_1.weight")) is not None:
        adapter["intermediate_size"] = first.shape[0]
    overrides = {
        "adapter_config": adapter,
        "vision_feature_layer": published.vision_feature_layer,
        "pseudo_image_features": pseudo_image_features,
    }
    config: Any = compose_config(VTLMMConfig, vision_config, text_config, overrides)
    config.image_token_id = image_token_id
    config.architectures = [VTLMMForCausalLM.__name__]
    if (embeddings := names.stored_of("model.language_model.embed_tokens.weight")) is not None:
        config.dtype = embeddings.dtype
    return config


def _refuse_other_weights(
    source: str | os.PathLike,
    published: PublishedLlava,
    names: PublishedNames,
    tower: PublishedTower,
    expected: Mapping[str, torch.Size],
    new: list[str],
) -> None:
    text_config: Any = published.text_config
    misshapen = []
    for own, name in names.published.items():
        shape, stored = expected.get(own), names.stored[name]
        if shape is not None and has_vocabulary_rows(own):
            shape = torch.Size([text_config.vocab_size, *shape[1:]])
        if shape is not None and stored.shape != shape:
            misshapen.append(f"{name} has shape {tuple(stored.shape)}, expected {tuple(shape)}")
        elif stored.dtype not in DTYPE_NAMES:
            misshapen.append(f"{name} holds {stored.dtype}, expected floating-point numbers")
    refuse_misfits(
        source,
        f"those of {'LLaVA-1.5' if new else 'VW-LMM'} with a {text_config.model_type} of "
        f"{text_config.num_hidden_layers} layers of {text_config.hidden_size}, as its config says",
        missing=[names.published_of(own) for own in expected if own not in {*names.published, *tower.weights, *new}],
        unknown=[*names.unknown, *(name for own, name in names.published.items() if own not in expected)],
        misshapen=misshapen,
    )


def _planned(
    names: PublishedNames, tower: PublishedTower, expected: Mapping[str, torch.Size], new: list[str]
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of all weights in the order in which they are written: that of the published files."""
    # A pooler of the tower's checkpoint may be no part of the composed model.
    tower.weights = {name: weight for name, weight in tower.weights.items() if name in expected}
    planned = {name: (weight.shape, weight.dtype) for name, weight in tower.weights.items()}
    planned |= {own: (expected[own], names.stored[name].dtype) for name, own in names.own.items()}
    return planned | {name: (expected[name], planned["lm_head.weight"][1]) for name in new}


def _refuse_numbers(source: str | os.PathLike, name: str, weight: torch.Tensor) -> None:
    if not all(bool(torch.isfinite(chunk).all()) for chunk in weight.reshape(-1).split(_CHUNK)):
        refuse_misfits(source, "all numbers", misshapen=[f"{name} holds numbers that are not finite"])


def _with_rows(weight: torch.Tensor, shape: torch.Size) -> Iterator[torch.Tensor]:
    """A weight, and below it the mean of its rows as often as rows are missing, the rule of [`grow_vocabulary`]."""
    yield weight
    if (missing := shape[0] - len(weight)) > 0:
        chunks = weight.split(max(_CHUNK // weight.shape[1], 1))
        total = sum((chunk.sum(0, dtype=torch.float64) for chunk in chunks), torch.zeros(()))
        yield (total / len(weight)).to(weight.dtype).expand(missing, -1)


def _random_rows(shape: torch.Size, dtype: torch.dtype, std: float, seed: int) -> Iterator[torch.Tensor]:
    """A weight drawn from a normal distribution, the same however many rows are made at once."""
    generator = torch.Generator().manual_seed(seed)
    num_rows, width = shape
    for start in range(0, num_rows, _ROWS):
        rows = torch.empty(min(_ROWS, num_rows - start), width)
        yield rows.normal_(std=std, generator=generator).to(dtype)


# What only sampling reads: LLaVA's generation configs have such fields and no do_sample, which cannot be saved.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def _generation_config(path: Path, config: VTLMMConfig) -> GenerationConfig:
    text_config: Any = config.text_config
    generation_config = GenerationConfig.from_model_config(text_config)
    if (file := path / GENERATION_CONFIG_NAME).is_file():  # optional
        try:
            generation_config = GenerationConfig.from_pretrained(path)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} is truncated or no config of generation: download it anew. ({first_line(error)})"
            ) from error
    if not generation_config.do_sample:
        for name in _SAMPLING:
            setattr(generation_config, name, None)
    generation_config.suppress_tokens = [config.image_token_id]
    if generation_config.pad_token_id is None:
        pad_token_id = text_config.pad_token_id
        generation_config.pad_token_id = text_config.eos_token_id if pad_token_id is None else pad_token_id
    return generation_config


__all__ = ["KINDS", "LlavaConversion", "LlavaPlan", "convert_llava", "plan_llava_conversion"]
