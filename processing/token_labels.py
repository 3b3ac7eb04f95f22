"""Tokens of a vocabulary as people read them: each alone, as a label in a picture or a table."""

import json
import re
import string
import unicodedata
from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

KINDS = ("word", "piece", "number", "punctuation", "symbol", "white space", "control", "bytes", "special", "unknown")
"""What tokens are: the beginning of a word, a piece that joins on to what is before it, digits, punctuation marks
(category P of Unicode, and the signs of ASCII), other signs, white space, control characters, a part of a character
(bytes that are no UTF-8 alone), a special token, an id that the tokenizer does not have."""

JOINED = "·"
_SPACES = {" ": "␣", "\n": "↵", "\t": "⇥", "\u00a0": "⍽"}
SIGNS = frozenset([JOINED, *_SPACES.values(), *"“”‘’–—…•×€™"])
"""Signs of labels, and of texts in Latin letters, that are neither letters nor ASCII."""
_CONTROL_NAMES = (
    *("NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI"),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"),
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MOST_REPEATED = 3
_REPLACEMENT = "\ufffd"
_LONE_BYTES = range(0xDC80, 0xDD00)
# Scripts that put no space between words, and are not wide.
_UNSPACED = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "JAVANESE ", "BALINESE ")


class TokenLabel(NamedTuple):
    """
    A token as it is shown.

    Attributes:
        text (`str`): one line without control characters, never empty.
        kind (`str`): one of [`KINDS`].
    """

    text: str
    kind: str


class TokenLabels:
    """
    Labels of the tokens of a vocabulary.

    A label is what the token adds to a text: bytes of byte-level vocabularies and `▁` of SentencePiece are decoded. A
    token that begins a word is the word (`dog`); `·` marks where a token joins on to another one (`·ing`), which
    punctuation marks, digits and scripts without spaces do not need. White space is visible: `␣` (a space beside the
    one that begins a word), `↵`, `⇥`, `⍽` (no-break); more than three in a row are counted, `␣×8`. Control
    characters are named, `[BEL]`, those without name and other invisible ones numbered, `[U+200B]`. Bytes that are no
    whole character are `<0xE4>`; special tokens are shown as they are written; `[#49152]` is an id beyond the
    tokenizer's, as in vocabularies padded to a round size.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): whose tokens they are.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._read_piece = _piece_reader(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
        self._literal = {number: token.content for number, token in added.items()}
        self._size = max(len(tokenizer), *(number + 1 for number in added), 0)
        self._known: dict[int, TokenLabel] = {}

    def __getitem__(self, token_id: int) -> TokenLabel:
        """
        The label of a token.

        Args:
            token_id (`int`): its number in the vocabulary.

        Raises:
            ValueError: if it is negative.
        """
        token_id = int(token_id)
        if token_id < 0:
            raise ValueError(f"{token_id} is no token id: expected a number from 0 on.")
        if token_id not in self._known:
            self._known[token_id] = self._label(token_id)
        return self._known[token_id]

    def texts(self, token_ids: np.ndarray) -> np.ndarray:
        """
        The texts of many labels.

        Args:
            token_ids (`np.ndarray` of any shape): token ids.

        Returns:
            `np.ndarray` of the same shape, of `str`.
        """
        token_ids = np.asarray(token_ids)
        texts = np.empty(token_ids.shape, dtype=object)
        texts.reshape(-1)[:] = [self[number].text for number in token_ids.reshape(-1)]
        return texts

    def kinds(self, vocab_size: int) -> np.ndarray:
        """
        What the tokens of a vocabulary are.

        Args:
            vocab_size (`int`): how many tokens the model has, which may be more than the tokenizer's.

        Returns:
            `np.ndarray` of shape `(vocab_size,)`: indices into [`KINDS`].
        """
        return np.array([KINDS.index(self[number].kind) for number in range(vocab_size)], dtype=np.int64)

    def _label(self, token_id: int) -> TokenLabel:
        piece = self._tokenizer.convert_ids_to_tokens(token_id) if token_id < self._size else None
        if piece is None:
            return TokenLabel(f"[#{token_id}]", "unknown")
        if token_id in self._special:
            return TokenLabel(_visible(piece) or f"[#{token_id}]", "special")
        if token_id in self._literal:
            content, joins_next = self._literal[token_id].encode("utf-8", "surrogatepass"), False
        else:
            content, joins_next = self._read_piece(piece)
        if not content:
            return TokenLabel(f"[#{token_id}]", "special")
        # Bytes that are no UTF-8 become the lone surrogates U+DC80 to U+DCFF.
        return _label_of_text(content.decode("utf-8", "surrogateescape"), joins_next)


def punctuation_tokens(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """
    Which tokens are punctuation marks: apart from white space nothing but characters of Unicode's category P, or the
    signs that ASCII counts among them, such as `=`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): whose tokens they are.
        vocab_size (`int`): how many tokens the model has, which may be more than the tokenizer's.

    Returns:
        `np.ndarray` of shape `(vocab_size,)` and dtype bool.
    """
    return TokenLabels(tokenizer).kinds(vocab_size) == KINDS.index("punctuation")


PieceReader = Callable[[str], tuple[bytes, bool]]
"""What a piece of a vocabulary stands for: bytes, which begin with a space if it begins a word, and whether the next
one joins on to it."""


def _piece_reader(tokenizer: Any) -> PieceReader:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        # Of tokenizers in Python, those of SentencePiece; a vocabulary of words alone has no decoder either.
        is_fast = hasattr(tokenizer, "backend_tokenizer")
        return _begins_each_word if is_fast else lambda piece: _with_spaces(piece, "▁")
    described = json.loads(decoder.__getstate__())
    parts = {part["type"]: part for part in described.get("decoders", [described])}
    if "ByteLevel" in parts:
        return _from_byte_level
    if "WordPiece" in parts:
        prefix = parts["WordPiece"]["prefix"]
        return lambda piece: (
            (piece.removeprefix(prefix).encode(), False) if piece.startswith(prefix) else _begins_each_word(piece)
        )
    if "BPEDecoder" in parts:
        suffix = parts["BPEDecoder"]["suffix"]
        return lambda piece: (b" " + piece.removesuffix(suffix).encode(), not piece.endswith(suffix))
    space = parts.get("Metaspace", {}).get("replacement") or _replaced_by_space(parts.get("Replace")) or "▁"
    return lambda piece: _with_spaces(piece, space)


def _replaced_by_space(part: dict[str, Any] | None) -> str | None:
    if part is None or part.get("content") != " ":
        return None
    return part["pattern"].get("String")


def _begins_each_word(piece: str) -> tuple[bytes, bool]:
    return b" " + piece.encode("utf-8", "surrogatepass"), False


def _with_spaces(piece: str, space: str) -> tuple[bytes, bool]:
    if byte := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)]), False
    return piece.replace(space, " ").encode("utf-8", "surrogatepass"), False


def _byte_of_letter() -> dict[str, int]:
    """The alphabet in which byte-level vocabularies are written: printable bytes are themselves, the others follow
    from U+0100 on in their order."""
    printable = {chr(byte): byte for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    others = [byte for byte in range(256) if chr(byte) not in printable]
    letters = printable | {chr(0x100 + place): byte for place, byte in enumerate(others)}
    if set(letters) != set(ByteLevel.alphabet()):
        raise RuntimeError("The byte-level alphabet of `tokenizers` has changed: labels of tokens would be wrong.")
    return letters


_BYTES = _byte_of_letter()


def _from_byte_level(piece: str) -> tuple[bytes, bool]:
    if all(letter in _BYTES for letter in piece):
        return bytes(_BYTES[letter] for letter in piece), False
    return piece.encode("utf-8", "surrogatepass"), False


def _label_of_text(text: str, joins_next: bool) -> TokenLabel:
    kind = _kind(text)
    if kind == "white space":
        return TokenLabel(_visible(text), kind)
    core = text.removeprefix(" ")
    before = JOINED if kind == "piece" and _is_letter(core[0]) else ""
    behind = JOINED if joins_next and _is_letter(core[-1]) else ""
    return TokenLabel(f"{before}{_visible(core)}{behind}", kind)


def _kind(text: str) -> str:
    if text.isspace():
        return "white space"
    if any(ord(letter) in _LONE_BYTES for letter in text):
        return "bytes"
    categories = {_category(letter) for letter in text if not letter.isspace()}
    for only, kind in (("C", "control"), ("P", "punctuation"), ("N", "number")):
        if categories == {only}:
            return kind
    if categories.isdisjoint("LM"):
        return "symbol"
    return "word" if text[0].isspace() or _is_unspaced(text[0]) else "piece"


def _category(letter: str) -> str:
    return "P" if letter in string.punctuation else unicodedata.category(letter)[0]


def _is_letter(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LM"


def _is_unspaced(letter: str) -> bool:
    """Whether a letter's script puts no space between words."""
    return unicodedata.east_asian_width(letter) in "WF" or unicodedata.name(letter, "").startswith(_UNSPACED)


def _visible(text: str) -> str:
    """A text on one line in which white space and control characters show."""
    shown = []
    for letter, run in groupby(text):
        sign, times = _visible_letter(letter), len(list(run))
        is_counted = times > _MOST_REPEATED and sign != letter
        shown.append(f"{sign}×{times}" if is_counted else sign * times)
    return "".join(shown)


def _visible_letter(letter: str) -> str:
    code = ord(letter)
    if letter in _SPACES:
        return _SPACES[letter]
    if code in _LONE_BYTES:
        return f"<0x{code - 0xDC00:02X}>"
    if code < len(_CONTROL_NAMES) or code == 0x7F:
        return f"[{_CONTROL_NAMES[code] if code != 0x7F else 'DEL'}]"
    if unicodedata.category(letter)[0] in "CZ" or letter == _REPLACEMENT:
        return f"[U+{code:04X}]"
    return letter


__all__ = ["KINDS", "TokenLabel", "TokenLabels", "punctuation_tokens"]
