"""Tokenizers of LLaVA-1.5 and VW-LMM as published, so that a prompt has the token ids that it had in training."""

import os
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ..configuration.optional import require
from .base_weights import resolve_checkpoint
from .composition import add_image_token
from .published_checkpoints import first_line
from .published_llava import PublishedLlava
from .trained_weights import CheckpointError

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_LLAMA = (None, "LlamaTokenizer", "LlamaTokenizerFast")  # which Mistral's is too
_SPECIAL = ("bos_token", "eos_token", "unk_token")
_COPIED = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "clean_up_tokenization_spaces")


def load_published_tokenizer(path: Path, published: PublishedLlava, text: str | None = None) -> Any:
    """
    The tokenizer of a published LLaVA or VW-LMM, which knows the placeholder of images.

    Args:
        path (`Path`): folder of the checkpoint.
        published ([`PublishedLlava`]): its config.
        text (`str`, *optional*): where the tokenizer is taken from, a folder or Hub id; by default `path`.

    Raises:
        FileNotFoundError: if there is none.
        CheckpointError: if it cannot be read, or has another id for the placeholder than the config.
        ImportError: if it is in the format of SentencePiece, and the extra `convert` is not installed.
    """
    if text is None and not any((path / name).is_file() for name in _FILES):
        raise FileNotFoundError(
            f"{path} holds no tokenizer ({', '.join(_FILES)}): say where to take it from as text (--text), for "
            "LLaVA-1.5 lmsys/vicuna-7b-v1.5."
        )
    where = os.fspath(path) if text is None else resolve_checkpoint(text)
    if os.path.isfile(os.path.join(where, "tokenizer.model")) and not os.path.isfile(os.path.join(where, _FILES[0])):
        require("sentencepiece", "convert")
        require("google.protobuf", "convert")  # with which transformers reads the file
    try:
        tokenizer_config = get_tokenizer_config(where)
        if tokenizer_config.get("tokenizer_class") in _LLAMA:
            # <s> stands before every text unless the config says otherwise, which versions of transformers differ in.
            legacy = tokenizer_config.get("legacy")
            add_bos_token = tokenizer_config.get("add_bos_token", True)
            tokenizer = _llava_tokenizer(where, add_bos_token, legacy is None or bool(legacy))
        else:
            tokenizer = AutoTokenizer.from_pretrained(where, config=published.text_config)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The tokenizer of {where} cannot be read: {first_line(error)}") from error
    pad_token_id = getattr(published.text_config, "pad_token_id", None)
    if tokenizer.pad_token is None and pad_token_id is not None and 0 <= pad_token_id < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    image_token_id = add_image_token(tokenizer)
    if published.image_token_id not in (None, image_token_id):
        raise CheckpointError(
            f"The tokenizer of {where} has the id {image_token_id} for {tokenizer.image_token}, the config of {path} "
            f"has {published.image_token_id}: they are not of one model."
        )
    return tokenizer


def _llava_tokenizer(where: str, add_bos_token: bool, legacy: bool) -> PreTrainedTokenizerFast:
    """
    Llama's tokenizer as LLaVA uses it: the texts beside an image are tokenized each by itself, so that the mark of a
    space is put before every one of them (haotian-liu/LLaVA, llava/mm_utils.py). Behind `</s>`, before a further turn,
    it is put there too in `legacy` mode, and left out otherwise (huggingface/transformers v4.35.0,
    src/transformers/models/llama/tokenization_llama.py, which VW-LMM requires; LLaVA counts its labels accordingly,
    haotian-liu/LLaVA, llava/train/train.py). Llama's own class of today does not do both, nor saves it.

    Args:
        where (`str`): folder or Hub id.
        add_bos_token (`bool`): whether `<s>` is put before a text.
        legacy (`bool`): of the tokenizer's config, `True` where it does not say.
    """
    tokenizer: Any = LlamaTokenizer.from_pretrained(where, add_bos_token=add_bos_token)
    named = {name: getattr(tokenizer, name) for name in _COPIED}
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = None
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    if not legacy:
        # Tokens that are "normalized" are looked for behind the normalizer, in a text that is marked as a whole, while
        # the placeholder of images is cut out before it. The mark goes where such a token comes first.
        special = [token for name in _SPECIAL if (token := named[name]) is not None]
        named |= {name: _normalized(named[name]) for name in _SPECIAL if named[name] is not None}
        first = "|".join(map(re.escape, dict.fromkeys(special)))
        marks.append(normalizers.Replace(Regex(rf"\A▁(?={first})"), ""))
    backend.normalizer = normalizers.Sequence(marks)
    if not legacy:
        backend.add_special_tokens([named[name] for name in _SPECIAL if named[name] is not None])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def _normalized(token: str) -> AddedToken:
    return AddedToken(str(token), special=True, normalized=True)


__all__ = ["load_published_tokenizer"]
