"""Data sources by name and format: their description, the registry of formats, and the formats that are files.

A format is a function that takes a [`DataSource`] and its own options and returns a `Dataset` or `IterableDataset` of
canonical examples (see `data_examples.py`). Further ones are added with [`register_data_format`].
"""

import dataclasses
import difflib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from .data_examples import apply_prompt, check_prompt, image_file, make_example, question_answer
from .data_records import records_dataset

DataFormat = Callable[..., Dataset | IterableDataset]

# Modules that register formats when imported; they are imported when a format is first looked up.
FORMAT_MODULES = (
    "data_formats",
    "data_annotations",
    "data_images",
    "data_shards",
    "masked_images",
    "captioned_photographs",
    "cutouts",
    "image_answers",
    "image_edits",
    "object_centric",
    "photograph_scenes",
    "referring_expressions",
    "visual_questions",
)
_FORMATS: dict[str, DataFormat] = {}


@dataclass
class DataSource:
    """Where training examples come from. In a recipe: one entry of the list `data`.

    Args:
        format (`str`): name of a registered format, e.g. `"llava"`.
        name (`str`, *optional*): how the source is called in examples, errors and reports; unique in a mixture.
        path (`str` or list of `str`, *optional*): annotation file, folder, shards or Hub id, as the format says.
        images (`str`, *optional*): folder that image paths are relative to.
        split (`str`, *optional*): part of the source, where the format has parts.
        weight (`float`, *optional*): share in a mixture, relative to the other sources' weights.
        streaming (`bool`): read lazily, as an `IterableDataset`.
        max_samples (`int`, *optional*): use at most so many rows: the first ones, or a random choice if `seed` is set
            and the format does not read lazily. (Of webdataset shards and of streamed Hub data, every data loader
            worker takes its share from its own shards.)
        seed (`int`, *optional*): shuffle with this seed; `None` keeps the source's order.
        where (`dict`): use only examples whose columns have these values, such as `{"kind": "caption"}`, or one of a
            list of values; `max_samples` counts those.
        on_error (`str`): `"raise"` stops at a bad sample (a structural one when loading, an unreadable image when it
            is read, one of which `max_length` leaves no answer when it is in a batch); `"skip"` leaves it out and
            counts it, for which every image is read and every text tokenized once beforehand (in a stream: each time
            it comes up).
        prompt (`str`, *optional*): template around the question, e.g. `"Question: {question} Answer:"`. The default is
            the bare question: the processor's chat template wraps it.
        options (`dict`): options of the format.
        shuffle_buffer (`int`): examples that a stream holds to shuffle among.
        num_proc (`int`, *optional*): processes that check the samples for `on_error="skip"`.

    Raises:
        ValueError: if a value is out of its range or unknown.
    """

    format: str
    name: str | None = None
    path: str | list[str] | None = None
    images: str | None = None
    split: str | None = None
    weight: float | None = None
    streaming: bool = False
    max_samples: int | None = None
    seed: int | None = None
    where: dict[str, Any] = field(default_factory=dict)
    on_error: str = "raise"
    prompt: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    shuffle_buffer: int = 1000
    num_proc: int | None = None

    def __post_init__(self):
        if self.name is None:
            place = "" if self.path is None or isinstance(self.path, list) else f":{Path(self.path).name}"
            self.name = f"{self.format}{place}"
        known("on_error", self.on_error, ("raise", "skip"))
        self._check_positive("weight", (int, float), "number")
        for attribute in ("max_samples", "shuffle_buffer", "num_proc"):
            self._check_positive(attribute, int, "whole number")
        for attribute in ("options", "where"):
            if not isinstance(getattr(self, attribute), Mapping):
                raise ValueError(
                    f"{attribute} of data source {self.name!r} must be a mapping, got {getattr(self, attribute)!r}."
                )
        if self.prompt is not None:
            check_prompt(self.prompt)

    def _check_positive(self, attribute: str, kind: type | tuple[type, ...], number: str) -> None:
        value: Any = getattr(self, attribute)
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if value is None or (is_number and 0 < value < math.inf):
            return
        raise ValueError(f"{attribute} of data source {self.name!r} must be a positive {number}, got {value!r}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataSource":
        """Builds a source from a mapping, e.g. an entry of a YAML recipe.

        Args:
            values (`Mapping`): field names and values.

        Returns:
            `DataSource`: the source.

        Raises:
            ValueError: if a field is unknown or `format` is missing.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            known("field of a data source", key, fields)
        if "format" not in values:
            raise ValueError(f"a data source needs a format ({', '.join(data_formats())}), got {dict(values)!r}.")
        return cls(**values)


def known(what: str, value: Any, choices: Iterable[str]) -> Any:
    """Checks that a user's value is one of the known ones.

    Args:
        what (`str`): what the value is, for the message.
        value: the value.
        choices: the known values.

    Returns:
        `value`.

    Raises:
        ValueError: if it is unknown; names it, the known ones and the closest.
    """
    choices = list(choices)
    if value in choices:
        return value
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {what} {value!r}; known: {', '.join(map(repr, choices)) or 'none'}.{hint}")


def register_data_format(name: str) -> Callable[[DataFormat], DataFormat]:
    """Decorator that adds a format of data sources.

    The function takes the [`DataSource`] and, as keyword arguments, the options that a user may set in
    `DataSource.options`. It returns a `Dataset` or (if `source.streaming`) an `IterableDataset` with the
    columns of `data_examples.FEATURES`, and possibly more; `max_samples`, `seed` and `on_error` are not its business.
    Where it cannot read lazily, a `Dataset` will do for `source.streaming` too.

    Args:
        name (`str`): name of the format in recipes.

    Returns:
        the decorator, which returns the function unchanged.

    Raises:
        ValueError: if another function is registered under this name.
    """

    def register(function: DataFormat) -> DataFormat:
        other = _FORMATS.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (
            function.__module__,
            function.__qualname__,
        ):
            raise ValueError(f"the data format {name!r} is already registered by {other.__module__}.")
        _FORMATS[name] = function
        return function

    return register


def data_formats() -> list[str]:
    """Names of all registered formats.

    Returns:
        `list[str]`: sorted names.
    """
    for module in FORMAT_MODULES:
        if importlib.util.find_spec(f".{module}", __package__) is not None:
            importlib.import_module(f".{module}", __package__)
    return sorted(_FORMATS)


def read_format(source: DataSource) -> Dataset | IterableDataset:
    """Calls the format of a source with the source's options.

    Args:
        source (`DataSource`): the source.

    Returns:
        the dataset as the format returns it.

    Raises:
        ValueError: if the format or an option is unknown.
    """
    known("data format", source.format, data_formats())
    function = _FORMATS[source.format]
    parameters = list(inspect.signature(function).parameters)[1:]
    for option in source.options:
        known(f"option of data format {source.format!r}", option, parameters)
    return function(source, **source.options)


EASY_VQA_SHAPES = ("circle", "rectangle", "triangle")
EASY_VQA_COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def easy_vqa_answer_type(answer: str) -> str:
    """The kind of an easy-VQA answer, by which accuracy is reported.

    Args:
        answer (`str`): one of the 13 answers.

    Returns:
        `str`: `"yes/no"`, `"shape"` or `"color"`.

    Raises:
        ValueError: if it is not one of the answers.
    """
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in EASY_VQA_SHAPES:
        return "shape"
    known("easy-VQA answer", answer, ("yes", "no", *EASY_VQA_SHAPES, *EASY_VQA_COLORS))
    return "color"


@register_data_format("easy-vqa")
def easy_vqa(source: DataSource) -> Dataset | IterableDataset:
    """The easy-VQA set: 48,248 questions about drawn shapes, with a fixed split and 13 answers.

    Args:
        source (`DataSource`): `split` is `"train"` (the default) or `"test"`; `path`, if set, is a folder that holds
            `easy_vqa/data`; by default the package that `vistok fetch` downloads.

    Returns:
        examples with the further column `answer_type` (see [`easy_vqa_answer_type`]).
    """
    split = known("split of easy-vqa", source.split or "train", ("train", "test"))
    if source.path is None:
        from ..modeling.base_weights import fetch_package

        package = fetch_package("easy-vqa")
    else:
        package = Path(str(source.path)).expanduser()
    folder = package / "easy_vqa" / "data" / split
    return records_dataset(
        source,
        folder / "questions.json",
        easy_vqa_example,
        extra_features=Features({"answer_type": Value("string")}),
        images=str((folder / "images").absolute()),
        prompt=source.prompt,
        split=split,
    )


def easy_vqa_example(
    record: Any, row: int, source: str, images: str, prompt: str | None, split: str
) -> dict[str, Any]:
    """Converts a record `[question, answer, image_id]` of easy-VQA; see `data_records.Convert`."""
    question, answer, image_id = record
    return make_example(
        source,
        row,
        [image_file(f"{images}/{image_id}.png")],
        question_answer(apply_prompt(prompt, question), answer),
        id=f"{split}-{row}",
        answer_type=easy_vqa_answer_type(answer),
    )
