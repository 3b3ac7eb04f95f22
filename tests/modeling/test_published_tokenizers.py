"""Tokenizers of LLaVA give the token ids that its authors' code gives."""

import io
import json
import shutil
import sys

import pytest
import sentencepiece
from transformers import AddedToken, AutoTokenizer, LlamaConfig, LlamaTokenizer, MistralConfig

from tests.tiny import tiny_tokenizer
from vistok.modeling.published_llava import PublishedLlava
from vistok.modeling.published_tokenizers import load_published_tokenizer
from vistok.modeling.trained_weights import CheckpointError

IMAGE = -200  # haotian-liu/LLaVA, llava/constants.py
PROMPTS = [
    "A chat. USER: <image>\nhow many cats are there? ASSISTANT:",
    "[INST] <image>\nhow many  cats? [/INST]three cats",
    "<image>",
    "USER: <image><image> two dogs\n<image>\nASSISTANT: Ünïcode",
    "USER: no image ASSISTANT: yes</s>",
    "USER: <image>\nhow many cats? ASSISTANT: three</s>USER: and dogs? ASSISTANT: two</s>USER: yes",
    "USER: <image></s>USER:</s></s> two dogs</s> <image>USER</s><image></s>",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tokenizer as Vicuna and Mistral have it: SentencePiece's byte-pair encoding, which falls back to bytes."""
    folder = tmp_path_factory.mktemp("llama")
    model = io.BytesIO()
    corpus = ["USER: how many cats are there? ASSISTANT: three cats and no dog", "[INST] two dogs [/INST] A chat. yes"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus * 20),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "model_max_length": 2048, "pad_token": None}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def ids_of_llava(folder, prompt, legacy):
    """
    As haotian-liu/LLaVA, llava/mm_utils.py: each text beside an image by itself, all behind one <s>. Within, texts
    behind </s> are marked with a space in legacy mode alone; otherwise they are encoded behind a piece that is taken
    away again, as huggingface/transformers v4.35.0 does.
    """
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    shield = pieces.encode("<unk>", out_type=str)
    ids = [1]
    for number, chunk in enumerate(prompt.split("<image>")):
        ids += [IMAGE] * (number > 0)
        for turn, text in enumerate(chunk.split("</s>")):
            ids += [2] * (turn > 0)
            if turn == 0 or legacy:
                ids += pieces.encode(text)
            elif text:
                found = pieces.encode("<unk>" + text, out_type=str)
                assert found[: len(shield)] == shield
                ids += pieces.piece_to_id(found[len(shield) :])
    return ids


def with_legacy(folder, other, legacy):
    """A copy of a tokenizer whose config says `legacy`, or nothing of it."""
    shutil.copytree(folder, other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["legacy"] = legacy
    if legacy is None:
        del config["legacy"]
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    return other


@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig])
@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_have_the_ids_of_training_also_after_saving_twice(llama, tmp_path, config_class, prompt, legacy):
    llama = with_legacy(llama, tmp_path / "published", legacy)
    published = PublishedLlava(text_config=config_class(pad_token_id=0))
    tokenizer = load_published_tokenizer(llama, published)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    assert image_token_id == len(tokenizer) - 1 and tokenizer.pad_token == "<unk>"
    for _ in range(3):
        found = [IMAGE if token == image_token_id else token for token in tokenizer(prompt)["input_ids"]]
        assert found == ids_of_llava(llama, prompt, legacy is not False)
        assert tokenizer.decode(tokenizer(prompt)["input_ids"], skip_special_tokens=True).count("</s>") == 0
        tokenizer.save_pretrained(tmp_path / "saved")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.model_max_length == 2048 and tokenizer.eos_token == "</s>"


def test_a_placeholder_that_is_there_keeps_its_id(llama, tmp_path):
    saved = LlamaTokenizer.from_pretrained(llama)
    saved.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    saved.add_special_tokens({"pad_token": "<pad>"})
    saved.save_pretrained(tmp_path)
    image_token_id = len(saved) - 2
    published = PublishedLlava(text_config=LlamaConfig(), image_token_id=image_token_id)
    tokenizer = load_published_tokenizer(tmp_path, published)
    assert len(tokenizer) == len(saved) and tokenizer.pad_token_id == image_token_id + 1
    found = [IMAGE if token == image_token_id else token for token in tokenizer(PROMPTS[0])["input_ids"]]
    assert found == ids_of_llava(llama, PROMPTS[0], legacy=False)


def test_other_tokenizers_stay_as_they_are(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_published_tokenizer(tmp_path, PublishedLlava(text_config=LlamaConfig()))
    assert tokenizer(PROMPTS[4])["input_ids"] == tiny_tokenizer()(PROMPTS[4])["input_ids"]


def test_what_reading_needs_is_told(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'sentencepiece is needed.*"vistok\[convert\]"'):
        load_published_tokenizer(llama, PublishedLlava(text_config=LlamaConfig()))


def test_a_damaged_tokenizer_is_told(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"nothing that it could be")
    with pytest.raises(CheckpointError, match=r"The tokenizer of .* cannot be read"):
        load_published_tokenizer(tmp_path, PublishedLlava(text_config=LlamaConfig()))
