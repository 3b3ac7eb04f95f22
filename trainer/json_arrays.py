"""JSON documents that are too large to be held whole: their arrays, element by element."""

import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

_BLOCK = 1 << 20  # characters
_WHITE = " \t\n\r"
_AFTER_NUMBER = {*_WHITE, ",", "]", "}"}


def json_members(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Reads a JSON object; of a member that is an array, one element after the other.

    A file of several GB, such as the instances of Objects365, so takes the memory of what is kept of it.

    Args:
        path (`str`): a JSON file.

    Yields:
        `tuple[str, Any]`: name of a member and an element of it, or its value where it is no array.

    Raises:
        ValueError: if the file is not a whole JSON object.
    """
    with open(path, encoding="utf-8-sig") as stream:
        try:
            yield from _Reader(stream).members()
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} is not a whole JSON object ({error}).") from error


class _Reader:
    """A window over the text that moves on as it is read."""

    def __init__(self, stream: TextIO):
        self.stream, self.text, self.place, self.ended = stream, "", 0, False
        self.decoder = json.JSONDecoder()

    def members(self) -> Iterator[tuple[str, Any]]:
        self.expect("{")
        if self.peek() == "}":
            return
        while True:
            name = self.value()
            self.expect(":")
            if self.peek() == "[":
                for element in self.elements():
                    yield name, element
            else:
                yield name, self.value()
            if self.peek() == "}":
                return
            self.expect(",")

    def elements(self) -> Iterator[Any]:
        self.expect("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def peek(self) -> str:
        while True:
            while self.place < len(self.text) and self.text[self.place] in _WHITE:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                raise ValueError("it ends early")
            self.read_on()

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise ValueError(f"expected {character!r}, found {found!r}")
        self.place += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
                # A number at the end of the window may go on behind it: 1 may be 1.5e3.
                whole = not isinstance(value, (int, float)) or self.text[end : end + 1] in _AFTER_NUMBER
                if (whole and end < len(self.text)) or self.ended:
                    self.place = end
                    return value
            except ValueError:
                if self.ended:
                    raise
            self.read_on()

    def read_on(self) -> None:
        # The window at least doubles where a value does not fit, so that a long one is not parsed over and over.
        block = self.stream.read(max(_BLOCK, len(self.text) - self.place))
        self.ended = not block
        self.text, self.place = self.text[self.place :] + block, 0


__all__ = ["json_members"]
