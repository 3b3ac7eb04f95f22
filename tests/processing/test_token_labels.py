"""Labels of tokens: what a reader sees of byte-level, SentencePiece, WordPiece and suffix vocabularies."""

import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from vistok.modeling.base_weights import resolve_checkpoint
from vistok.processing.token_labels import KINDS, TokenLabels, punctuation_tokens


@pytest.fixture(scope="module")
def smollm2():
    return AutoTokenizer.from_pretrained(resolve_checkpoint("vistok:smollm2-135m"))


def llama(*pieces: str) -> LlamaTokenizer:
    """A tokenizer with the decoder of Llama's, which is SentencePiece with bytes for what it lacks."""
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *pieces])}
    return LlamaTokenizer(vocab=vocabulary, merges=[])


def of_decoder(decoder, *pieces: str) -> PreTrainedTokenizerFast:
    vocabulary = {piece: number for number, piece in enumerate(["[UNK]", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def labels_of(tokenizer, *pieces: str) -> list[tuple[str, str]]:
    labels = TokenLabels(tokenizer)
    return [tuple(labels[tokenizer.convert_tokens_to_ids(piece)]) for piece in pieces]


@pytest.mark.real_weights("smollm2-135m")
class TestByteLevel:
    @pytest.mark.parametrize(
        ("text", "label", "kind"),
        [
            (" dog", "dog", "word"),
            ("ing", "·ing", "piece"),
            (",", ",", "punctuation"),
            (" &", "&", "punctuation"),
            ("<", "<", "punctuation"),
            ('"', '"', "punctuation"),
            ("5", "5", "number"),
            ("\n", "↵", "white space"),
            (" ", "␣", "white space"),
            ("        ", "␣×8", "white space"),
            ("\t", "⇥", "white space"),
            ("\x07", "[BEL]", "control"),
            ("é", "·é", "piece"),
        ],
    )
    def test_a_token_is_shown_as_what_it_adds_to_a_text(self, smollm2, text, label, kind):
        token_ids = smollm2.encode(text, add_special_tokens=False)
        assert len(token_ids) == 1
        assert TokenLabels(smollm2)[token_ids[0]] == (label, kind)

    def test_a_character_of_several_tokens_is_shown_as_bytes(self, smollm2):
        token_ids = smollm2.encode("🙂", add_special_tokens=False)
        labels = TokenLabels(smollm2)
        assert len(token_ids) > 1
        assert "".join(labels[number].text for number in token_ids) == "<0xF0><0x9F><0x99><0x82>"
        assert {labels[number].kind for number in token_ids} == {"bytes"}

    def test_special_tokens_are_shown_as_they_are_written(self, smollm2):
        assert labels_of(smollm2, "<|im_start|>") == [("<|im_start|>", "special")]

    def test_every_label_is_one_visible_line(self, smollm2):
        labels = TokenLabels(smollm2)
        texts = [labels[number].text for number in range(len(smollm2))]
        assert min(map(len, texts)) > 0
        shown = {letter for text in texts for letter in text}
        assert [letter for letter in shown if unicodedata.category(letter)[0] in "CZ"] == []

    def test_a_label_without_its_marks_is_the_decoded_token(self, smollm2):
        labels = TokenLabels(smollm2)
        for number in range(200, 49152, 7):
            label = labels[number]
            if label.kind in ("word", "piece", "number") and "␣" not in label.text:
                decoded = smollm2.decode([number], clean_up_tokenization_spaces=False)
                assert label.text.removeprefix("·") == decoded.removeprefix(" ").replace("\n", "↵")
                begins_with_letter = unicodedata.category(decoded[0])[0] in "LM"
                assert label.text.startswith("·") == (label.kind == "piece" and begins_with_letter)

    def test_ids_behind_the_vocabulary_have_a_label_of_their_own(self, smollm2):
        assert TokenLabels(smollm2)[49152] == ("[#49152]", "unknown")

    def test_punctuation_marks_are_those_of_unicode_and_ascii(self, smollm2):
        marks = punctuation_tokens(smollm2, 49160)
        assert marks.shape == (49160,) and marks.dtype == bool
        for text, is_mark in (("...", True), (" (", True), ("=", True), ("’", True), (" a", False), ("\n", False)):
            assert marks[smollm2.encode(text, add_special_tokens=False)[0]] == is_mark, text
        assert not marks[49152:].any()


class TestSentencePiece:
    def test_an_underline_before_a_piece_begins_a_word(self):
        tokenizer = llama("▁dog", "ing", "▁", "▁▁▁▁", "▁▁dog", ",", "▁,", "中", "7")
        assert labels_of(tokenizer, "▁dog", "ing", "▁", "▁▁▁▁", "▁▁dog") == [
            ("dog", "word"),
            ("·ing", "piece"),
            ("␣", "white space"),
            ("␣×4", "white space"),
            ("␣dog", "word"),
        ]
        assert labels_of(tokenizer, ",", "▁,", "中", "7") == [
            (",", "punctuation"),
            (",", "punctuation"),
            ("中", "word"),
            ("7", "number"),
        ]

    def test_bytes_are_read(self):
        tokenizer = llama("<0x0A>", "<0xE4>", "<0x41>", "<0x2E>")
        assert labels_of(tokenizer, "<0x0A>", "<0xE4>", "<0x41>", "<0x2E>") == [
            ("↵", "white space"),
            ("<0xE4>", "bytes"),
            ("·A", "piece"),
            (".", "punctuation"),
        ]

    def test_special_tokens_and_unprintable_characters(self):
        tokenizer = llama("▁\u200b", "\ufeff", "\u00a0", "\ufffd")
        assert labels_of(tokenizer, "<s>", "▁\u200b", "\ufeff", "\u00a0", "\ufffd") == [
            ("<s>", "special"),
            ("[U+200B]", "control"),
            ("[U+FEFF]", "control"),
            ("⍽", "white space"),
            ("[U+FFFD]", "symbol"),
        ]

    def test_the_decoder_named_metaspace_is_read_alike(self):
        tokenizer = of_decoder(decoders.Metaspace(), "▁dog", "ing")
        assert labels_of(tokenizer, "▁dog", "ing") == [("dog", "word"), ("·ing", "piece")]


class TestOtherVocabularies:
    def test_pieces_of_wordpiece_have_a_prefix(self):
        tokenizer = of_decoder(decoders.WordPiece(), "dog", "##ing", ".")
        assert labels_of(tokenizer, "dog", "##ing", ".") == [("dog", "word"), ("·ing", "piece"), (".", "punctuation")]

    def test_words_that_end_with_a_suffix_join_the_next_one_without(self):
        tokenizer = of_decoder(decoders.BPEDecoder(suffix="</w>"), "dog</w>", "do", ",</w>")
        assert labels_of(tokenizer, "dog</w>", "do", ",</w>") == [
            ("dog", "word"),
            ("do·", "word"),
            (",", "punctuation"),
        ]

    def test_without_a_decoder_each_token_is_a_word(self):
        assert labels_of(of_decoder(None, "dog"), "dog") == [("dog", "word")]

    def test_added_tokens_that_are_not_special_are_read_as_text(self):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["\n\n", " cat"])
        assert labels_of(tokenizer, "\n\n", " cat") == [("↵↵", "white space"), ("cat", "word")]


class TestManyLabels:
    def test_texts_have_the_shape_of_the_ids(self):
        labels = TokenLabels(tiny_tokenizer())
        texts = labels.texts(np.arange(60).reshape(3, 4, 5))
        assert texts.shape == (3, 4, 5)
        assert texts[2, 3, 4] == labels[59].text

    def test_kinds_of_a_vocabulary_that_is_larger_than_the_tokenizers(self):
        kinds = TokenLabels(tiny_tokenizer()).kinds(400)
        assert kinds.shape == (400,)
        assert set(kinds[340:]) == {KINDS.index("unknown")}
        assert set(kinds[:3]) == {KINDS.index("special")}

    def test_a_negative_id_is_refused(self):
        with pytest.raises(ValueError, match="-100 is no token id"):
            TokenLabels(tiny_tokenizer())[-100]
