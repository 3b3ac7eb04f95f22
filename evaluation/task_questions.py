"""The question files of the tasks, read as examples: a prompt about an image, and the right answer."""

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..processing.images import BadSampleError
from .measures import Metric

logger = logging.get_logger(__name__)

SKIP = "skip"


@dataclass(frozen=True)
class QuestionFiles:
    """
    Where questions and images lie, and how they are to be read.

    Args:
        questions (`str`, *optional*): a file, or a folder that holds files of the names a task knows.
        images (`str`, *optional*): folder of the images.
        prompt_style (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"reference"`.
        fix_typos (`str`, *optional*, defaults to `"both"`): of VCR-MCI, whose spelling gives answers away: `"no"`,
            `"yes"`, or `"both"`: a report each.
        missing_images (`str`, *optional*, defaults to `"error"`): `"error"`, or `"skip"`: leave out questions whose
            image is missing, and say how many.
        load_source (`Callable`, *optional*): loads a data source by its description, for tasks that are one.
        seed (`int`, *optional*, defaults to 0): of questions that are built.
        vocabulary (`str`, *optional*): the annotations of VQAv2's training questions, whose frequent answers are the
            vocabulary that GVT's VQA accuracy is restricted to, see [`answer_vocabulary`].
    """

    questions: str | os.PathLike | None = None
    images: str | os.PathLike | None = None
    prompt_style: str = "paper"
    fix_typos: str = "both"
    missing_images: str = "error"
    load_source: Callable[[Mapping[str, Any]], Any] | None = None
    seed: int = 0
    vocabulary: str | os.PathLike | None = None


@dataclass(frozen=True)
class Split:
    """
    Questions that are reported on together.

    Args:
        name (`str`): of the split.
        test (`list[dict]`): examples that end with the right answer.
        train (`list[dict]`, *optional*): training examples, for the question-only prior.
        num_missing (`int`, *optional*, defaults to 0): questions that were left out because their image is missing.
        metrics (`tuple[Metric, ...]`, *optional*): in place of the task's, where the files decide on them.
    """

    name: str
    test: Any
    train: Any = None
    num_missing: int = 0
    metrics: tuple[Metric, ...] | None = None


def make_question(
    task: str,
    row: int,
    image: Path,
    prompt: str,
    answer: str,
    question: str | None = None,
    id: Any = None,
    **columns: Any,
) -> dict[str, Any]:
    """
    An example of a question about an image.

    Args:
        task (`str`): its source.
        row (`int`): of the file, counted from 0.
        image (`Path`): file.
        prompt (`str`): what is asked, in its style.
        answer (`str`): what is right.
        question (`str`, *optional*): the bare question, for pictures.
        id: by default the row.
        **columns: further columns.
    """
    content = [{"type": "image", "text": None}, {"type": "text", "text": prompt}]
    return {
        "id": str(row if id is None else id),
        "source": task,
        "row": row,
        "images": [{"path": str(image), "bytes": None}],
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "question": question or prompt,
        **columns,
    }


def find_questions(task: str, files: QuestionFiles, names: Sequence[str]) -> Path:
    """
    The question file of a task.

    Args:
        task (`str`): name of the task.
        files ([`QuestionFiles`]): what the user gave.
        names (`list[str]`): what the file may be called in a folder, the best first.

    Raises:
        ValueError: if no questions were given.
        FileNotFoundError: if there is no such file or folder, or the folder holds none of these.
    """
    if files.questions is None:
        raise ValueError(f"Task {task} reads its questions from a file: give --questions, a folder with {names[0]}.")
    path = Path(files.questions)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"There is no question file or folder {path}, given as --questions of task {task}.")
    for name in names:
        if (path / name).exists():
            return path / name
    close = difflib.get_close_matches(names[0], [file.name for file in path.glob("*.json*")], n=1)
    hint = f" It does hold {close[0]}: give that file itself if it is meant." if close else ""
    raise FileNotFoundError(f"{path} holds no questions of task {task}: expected {' or '.join(names)} there.{hint}")


def read_json(path: Path, task: str) -> Any:
    """Reads a question file.

    Raises:
        ValueError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}, the question file of task {task}, is not JSON ({error}).") from error


def images_folder(task: str, files: QuestionFiles) -> Path:
    """The folder of the images.

    Raises:
        ValueError: if none was given.
        FileNotFoundError: if there is none.
    """
    if files.images is None:
        raise ValueError(f"Task {task} shows images: give --images, the folder that holds them.")
    if not Path(files.images).is_dir():
        raise FileNotFoundError(f"There is no folder of images {files.images}, given as --images of task {task}.")
    return Path(files.images)


def first_image(folder: Path, names: Iterable[str]) -> Path:
    """The first of these files that lies in the folder.

    Raises:
        FileNotFoundError: if none does; names the first.
    """
    places = [folder / name for name in dict.fromkeys(names)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"the image file {places[0]} does not exist")
    return found


def coco_names(image_id: int, file_name: str | None = None) -> list[str]:
    """What the file of a COCO image may be called, in the folder of the data set or in the one of its images."""
    names = [file_name] if file_name else []
    names += [f"{image_id:012d}.jpg", f"val2017/{image_id:012d}.jpg"]
    return names + [f"COCO_val2014_{image_id:012d}.jpg", f"val2014/COCO_val2014_{image_id:012d}.jpg"]


def collect(
    task: str,
    files: QuestionFiles,
    records: Sequence[Any],
    convert: Callable[[int, Any], dict[str, Any]],
    rows: Sequence[int] | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """
    Examples of records.

    Args:
        task, files: see [`find_questions`].
        records (`list`): of a question file.
        convert (`Callable`): takes row and record.
        rows (`list[int]`, *optional*): of the records in their file; by default from 0 on.

    Returns:
        `tuple[list[dict], int]`: the examples, and how many were left out because their image is missing.

    Raises:
        BadSampleError: if an image is missing or a record malformed; names the row.
    """
    examples, num_missing = [], 0
    for row, record in zip(range(len(records)) if rows is None else rows, records):
        try:
            examples.append(convert(row, record))
        except FileNotFoundError as error:
            if files.missing_images != SKIP:
                raise BadSampleError(
                    f"{str(error).rstrip('.')}: put it there, or leave such questions out with --skip-missing-images",
                    row=row,
                    source=task,
                ) from error
            num_missing += 1
        except (KeyError, TypeError, AttributeError) as error:
            raise BadSampleError(
                f"this is no question of task {task} ({type(error).__name__}: {error}): {str(record)[:200]}",
                row=row,
                source=task,
            ) from error
    if num_missing:
        logger.warning(f"{task}: {num_missing:,} of {len(records):,} questions are left out, their image is missing.")
    if not examples:
        why = "the images of all of them are missing" if num_missing else "the file holds none"
        raise ValueError(f"Task {task} has no questions to ask: {why}.")
    return examples, num_missing


def mark_distinct(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """
    Says of each of the chosen questions whether an equal one was chosen before it.

    Args:
        examples (`list[dict]`): where `copy_of` is the row of the first equal record of their file.

    Returns:
        `list[dict]`: with the column `distinct`, if there are copies among them.
    """
    rows = [example.get("copy_of") for example in examples]
    if None in rows:
        return list(examples)
    if len(set(rows)) == len(rows):
        return [{name: value for name, value in example.items() if name != "distinct"} for example in examples]
    seen: set[Any] = set()
    marked: list[Mapping[str, Any]] = []
    for row, example in zip(rows, examples):
        marked.append({**example, "distinct": row not in seen})
        seen.add(row)
    return marked


__all__ = [
    "SKIP",
    "QuestionFiles",
    "Split",
    "coco_names",
    "collect",
    "find_questions",
    "first_image",
    "images_folder",
    "make_question",
    "mark_distinct",
    "read_json",
]
