"""The question files of the tasks, read as examples: a prompt about an image, and the right answer."""

import difflib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..configuration.optional import require
from ..processing.images import BadSampleError
from .gvtbench_questions import build_questions, find_image, fix_question_typos, load_questions, official_name
from .prompt_texts import PAPER_PROMPT

logger = logging.get_logger(__name__)

CAPTION_PROMPTS = {
    "paper": "what does the image describe?",  # Section 4.1
    "reference": "Descibe the image in detail in a sentence: This is an image of ",  # sic
}
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
    """

    questions: str | os.PathLike | None = None
    images: str | os.PathLike | None = None
    prompt_style: str = "paper"
    fix_typos: str = "both"
    missing_images: str = "error"
    load_source: Callable[[Mapping[str, Any]], Any] | None = None


@dataclass(frozen=True)
class Split:
    """
    Questions that are reported on together.

    Args:
        name (`str`): of the split.
        test (`list[dict]`): examples that end with the right answer.
        train (`list[dict]`, *optional*): training examples, for the question-only prior.
        num_missing (`int`, *optional*, defaults to 0): questions that were left out because their image is missing.
    """

    name: str
    test: Any
    train: Any = None
    num_missing: int = 0


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
        if (path / name).is_file():
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
    task: str, files: QuestionFiles, records: Sequence[Any], convert: Callable[[int, Any], dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """
    Examples of records.

    Args:
        task, files: see [`find_questions`].
        records (`list`): of a question file.
        convert (`Callable`): takes row and record.

    Returns:
        `tuple[list[dict], int]`: the examples, and how many were left out because their image is missing.

    Raises:
        BadSampleError: if an image is missing or a record malformed; names the row.
    """
    examples, num_missing = [], 0
    for row, record in enumerate(records):
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


# GVTBench


def load_gvtbench(task: str, files: QuestionFiles) -> list[Split]:
    """Object counting or multi-class identification: an official file, or questions built from COCO instances."""
    kind, is_coco = task.removeprefix("coco_").removeprefix("vcr_"), task.startswith("coco_")
    built_from = ("instances.json", "instances_val2017.json", "instances_val2014.json") if is_coco else ()
    path = find_questions(task, files, (f"{task}.json", *built_from))
    records = _gvtbench_records(task, kind, path)
    _check_kind(task, kind, path, records)
    folder = images_folder(task, files)
    variants = {"test": records}
    if task == "vcr_mci" and files.fix_typos != "no":
        fixed = {"typos-fixed": fix_question_typos(records)}
        variants = fixed if files.fix_typos == "yes" else variants | fixed
    splits = []
    for name, asked in variants.items():
        firsts = _first_rows(asked)
        has_copies = len(firsts) < len(asked)

        def convert(row: int, record: Mapping[str, Any], firsts=firsts, has_copies=has_copies) -> dict[str, Any]:
            question = record["text_in"]
            prompt = PAPER_PROMPT.format(question=question) if files.prompt_style == "paper" else question
            columns = {"objects": _bin_of_objects(record["n_obj_exist"])} if kind == "mci" else {}
            columns |= {"counted": _bin_of_count(record["text_out"])} if kind == "oc" else {}
            return make_question(
                task, row, find_image(record, folder), prompt, record["text_out"], question,
                **columns, **({"distinct": row in firsts} if has_copies else {}),
            )  # fmt: skip

        splits.append(Split(name, *_test_and_missing(collect(task, files, asked, convert))))
    return splits


def _test_and_missing(collected) -> tuple[list[dict[str, Any]], None, int]:
    return collected[0], None, collected[1]


def _gvtbench_records(task: str, kind: str, path: Path) -> list[dict[str, Any]]:
    if path.name.startswith("instances"):
        return build_questions(path, kind)
    official = official_name(path)
    if official not in (None, task):
        raise ValueError(f"{path} is the official question file of task {official}, not of {task}.")
    return load_questions(path)


def _check_kind(task: str, kind: str, path: Path, records) -> None:
    begins = {"oc": "How many", "mci": "Does"}[kind]
    row = next((row for row, record in enumerate(records) if not record["text_in"].startswith(begins)), None)
    if row is not None:
        raise ValueError(
            f"{path}, row {row}: {records[row]['text_in']!r} is no question of task {task}, whose questions begin "
            f"with {begins!r}: give the question file of this task."
        )


def _first_rows(records) -> set[int]:
    """Rows of records that are not equal to an earlier one."""
    first: dict[tuple, int] = {}
    for row, record in enumerate(records):
        first.setdefault(tuple(sorted(record.items())), row)
    return set(first.values())


def _bin_of_count(answer: str) -> str:
    """The bins of the released code: the right count divided by three."""
    start = 3 * (int(answer) // 3)
    return f"{max(start, 1)}–{start + 2} objects"


def _bin_of_objects(number: int) -> str:
    return "<10 objects" if number < 10 else "10–19 objects" if number < 20 else "≥20 objects"


# VQAv2, captions, POPE, SEED-Bench


VQA_NAMES = ("v2_OpenEnded_mscoco_val2014_questions.json", "vqa_questions.json")


def load_vqa(task: str, files: QuestionFiles) -> list[Split]:
    """VQAv2: a file of questions, and the file of annotations beside it."""
    path = find_questions(task, files, VQA_NAMES)
    beside = path.with_name(path.name.replace("questions", "annotations").replace("OpenEnded_", ""))
    if beside == path or not beside.is_file():
        raise FileNotFoundError(f"{path} has no file of annotations beside it: expected {beside}.")
    questions, annotations = read_json(path, task), read_json(beside, task)
    for document, key, file in ((questions, "questions", path), (annotations, "annotations", beside)):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{file} has no list of {key}: expected a file in the format of VQAv2.")
    folder, of_question = images_folder(task, files), {a["question_id"]: a for a in annotations["annotations"]}

    def convert(row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        annotated = of_question[record["question_id"]]
        answers = [answer["answer"] for answer in annotated["answers"]]
        image = first_image(folder, coco_names(record["image_id"], record.get("file_name")))
        return make_question(
            task, row, image, PAPER_PROMPT.format(question=record["question"]),
            annotated.get("multiple_choice_answer") or answers[0], record["question"], record["question_id"],
            answers=answers, answer_type=annotated.get("answer_type"),
        )  # fmt: skip

    return [Split("test", *_test_and_missing(collect(task, files, questions["questions"], convert)))]


CAPTION_NAMES = ("captions_val2017.json", "captions.json", "captions_val2014.json")


def load_captions(task: str, files: QuestionFiles) -> list[Split]:
    """COCO captions: every image once, with all of its captions."""
    require("nltk", "evaluation")  # CIDEr comes last, hours later
    path = find_questions(task, files, CAPTION_NAMES)
    document = read_json(path, task)
    if not isinstance(document, dict) or not {"images", "annotations"} <= set(document):
        raise ValueError(f"{path} has no images and annotations: expected captions in the format of COCO.")
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in document["annotations"]:
        if "caption" not in annotation:
            raise ValueError(f"{path} holds annotations without a caption: give a captions file.")
        captions[annotation["image_id"]].append(annotation["caption"])
    prompt, folder = CAPTION_PROMPTS[files.prompt_style], images_folder(task, files)
    shown = prompt if files.prompt_style == "reference" else PAPER_PROMPT.format(question=prompt)
    described = [image for image in document["images"] if captions.get(image["id"])]

    def convert(row: int, image: Mapping[str, Any]) -> dict[str, Any]:
        file = first_image(folder, coco_names(image["id"], image.get("file_name")))
        texts = captions[image["id"]]
        return make_question(task, row, file, shown, texts[0].strip(), prompt, image["id"], answers=texts)

    return [Split("test", *_test_and_missing(collect(task, files, described, convert)))]


POPE_SPLITS = ("random", "popular", "adversarial")


def load_pope_splits(task: str, files: QuestionFiles) -> list[Split]:
    """POPE: a split for each file."""
    from .pope import load_pope

    found = {}
    if files.questions is not None and Path(files.questions).is_dir():
        names = {name: Path(files.questions) / f"coco_pope_{name}.json" for name in POPE_SPLITS}
        found = {name: path for name, path in names.items() if path.is_file()}
    if not found:
        path = find_questions(task, files, [f"coco_pope_{name}.json" for name in POPE_SPLITS])
        found = {next((name for name in POPE_SPLITS if name in path.name), path.stem): path}
    folder = images_folder(task, files)

    def convert(row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        name = record["image"]
        number = name.rsplit("_", 1)[-1].removesuffix(".jpg")
        names = [name, *(coco_names(int(number)) if number.isdigit() else [])]
        prompt = record["text"] if files.prompt_style == "reference" else PAPER_PROMPT.format(question=record["text"])
        return make_question(task, row, first_image(folder, names), prompt, record["label"], record["text"])

    return [
        Split(name, *_test_and_missing(collect(task, files, load_pope(path), convert))) for name, path in found.items()
    ]


def load_seed_bench_choices(task: str, files: QuestionFiles) -> list[Split]:
    """SEED-Bench: questions with four choices, the right one by its letter."""
    from .seed_bench import LETTERS, load_seed_bench

    path = find_questions(task, files, ("SEED-Bench.json", "seed_bench.json"))
    examples = []
    for loaded in load_seed_bench(path, images_folder(task, files)):
        question = loaded["messages"][0]["content"][-1]["text"]
        (image,) = loaded["images"]
        prompt = question if files.prompt_style == "reference" else PAPER_PROMPT.format(question=question)
        example = make_question(
            task, loaded["row"], Path(image["path"]), prompt, LETTERS[loaded["answer"]], question, loaded["id"],
            choices=loaded["choices"], dimension=loaded["dimension"],
        )  # fmt: skip
        examples.append(example)
    return [Split("test", examples)]


__all__ = [
    "QuestionFiles",
    "Split",
    "load_captions",
    "load_gvtbench",
    "load_pope_splits",
    "load_seed_bench_choices",
    "load_vqa",
    "make_question",
]
