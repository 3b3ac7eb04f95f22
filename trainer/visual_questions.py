"""The data format `vqa`: question and annotation files of VQAv2, or in its format."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from ..processing.images import BadSampleError
from .data_examples import apply_prompt, image_file, make_example, question_answer
from .data_formats import DataSource, register_data_format
from .data_records import existing_file, file_digest, records_dataset

EXTRA_FEATURES = Features(
    {"answer": Value("string"), "answer_type": Value("string"), "question_type": Value("string")}
)
# How the images of VQAv2, of COCO's releases since 2017 and of `vistok scenes` are called.
FILE_NAMES = ("COCO_{split}_{image_id:012d}.jpg", "{image_id:012d}.jpg")


@register_data_format("vqa")
def vqa(source: DataSource, annotations: str | None = None, file_name: str | None = None) -> Dataset | IterableDataset:
    """Questions in VQAv2's format, each with the answer that most people gave.

    Args:
        source (`DataSource`): `path` is the questions file, such as `v2_OpenEnded_mscoco_train2014_questions.json`,
            `images` the folder of the images, by default `images` beside it.
        annotations (`str`, *optional*): the annotations file; by default the one beside the questions whose name has
            `annotations` for `questions` (and not `OpenEnded_`).
        file_name (`str`, *optional*): how images are called, with the fields `image_id` and `split` (`data_subtype` of
            the questions file); by default whichever of `FILE_NAMES` is there.

    Returns:
        examples with the further columns `answer`, `answer_type` and `question_type`.

    Raises:
        FileNotFoundError: if a file or the folder is missing.
        ValueError: if a file is not in this format.
    """
    if not isinstance(source.path, str) or source.split is not None:
        raise ValueError(
            f"data source {source.name!r} needs one file of questions as `path` and no split, got "
            f"path={source.path!r}, split={source.split!r}."
        )
    path = existing_file(source.path, str(source.name))
    if path.suffix.lower() != ".json":
        raise ValueError(f"cannot read {path}: VQAv2's questions are a .json file.")
    beside = path.name.replace("OpenEnded_", "").replace("questions", "annotations")
    answers = existing_file(path.with_name(beside) if annotations is None else annotations, str(source.name))
    folder = path.parent / "images" if source.images is None else Path(source.images).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"data source {source.name!r}: there is no image folder {folder}; set `images`.")
    return records_dataset(
        source,
        path,
        vqa_example,
        extra_features=EXTRA_FEATURES,
        records_of=partial(vqa_records, annotations=str(answers), folder=str(folder), file_name=file_name),
        prompt=source.prompt,
        folder=str(folder),
        # Not used by the conversion: with them, another file of answers makes another dataset.
        answers=file_digest(answers),
        file_name=file_name,
    )


def vqa_records(document: Any, annotations: str, folder: str, file_name: str | None) -> list[Any]:
    """The questions of a VQAv2 document, each with its annotation and the file name of its image.

    Args:
        document: the parsed questions file.
        annotations (`str`): the annotations file.
        folder (`str`): folder of the images.
        file_name (`str`, *optional*): how images are called.

    Returns:
        `list[dict]`: the questions, with `annotation` (`None` if there is none) and `file_name`.

    Raises:
        ValueError: if a file is not in VQAv2's format or `file_name` has an unknown field.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("questions"), list):
        raise ValueError("VQA questions must be an object with the list 'questions'.")
    try:
        answered = json.loads(Path(annotations).read_text(encoding="utf-8-sig"))["annotations"]
        by_question = {annotation["question_id"]: annotation for annotation in answered}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{annotations} must be a JSON object with the list 'annotations' of answers to questions ({error!r})."
        ) from error
    template = _file_name_template(document, folder, file_name)
    split = str(document.get("data_subtype", ""))
    records = []
    for question in document["questions"]:
        image_id = question.get("image_id")
        name = template.format(image_id=image_id, split=split) if isinstance(image_id, int) else None
        records.append({**question, "annotation": by_question.get(question.get("question_id")), "file_name": name})
    return records


def _file_name_template(document: Mapping[str, Any], folder: str, file_name: str | None) -> str:
    split = str(document.get("data_subtype", ""))
    ids = [question["image_id"] for question in document["questions"] if isinstance(question.get("image_id"), int)]
    if file_name is not None:
        try:
            file_name.format(image_id=0, split=split)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"file_name {file_name!r} is no template ({error!r}); its fields are {{image_id:012d}} and {{split}}."
            ) from error
        return file_name
    for template in FILE_NAMES:
        if any((Path(folder) / template.format(image_id=image_id, split=split)).is_file() for image_id in ids[:100]):
            return template
    return FILE_NAMES[0] if split.endswith("2014") or split.endswith("2015") else FILE_NAMES[1]


def vqa_example(
    record: Mapping[str, Any],
    row: int,
    source: str,
    prompt: str | None,
    folder: str,
    answers: str,
    file_name: str | None,
) -> dict[str, Any]:
    """Converts a question of VQAv2; see `data_records.Convert`."""
    annotation = record["annotation"]
    if annotation is None:
        raise BadSampleError(f"question_id {record.get('question_id')!r} has no annotation")
    if record["file_name"] is None or not isinstance(record.get("question"), str):
        raise BadSampleError("the question needs a text 'question' and a whole number 'image_id'")
    answer = most_frequent_answer(annotation)
    return make_example(
        source,
        row,
        [image_file(str(Path(folder) / record["file_name"]))],
        question_answer(apply_prompt(prompt, record["question"]), answer),
        id=record.get("question_id", row),
        answer=answer,
        answer_type=str(annotation.get("answer_type", "")),
        question_type=str(annotation.get("question_type", "")),
    )


def most_frequent_answer(annotation: Mapping[str, Any]) -> str:
    """The answer that most people gave; of equally frequent ones VQAv2's `multiple_choice_answer`, else the first.

    Args:
        annotation (`Mapping`): an annotation of VQAv2.

    Returns:
        `str`: the answer.

    Raises:
        BadSampleError: if it has no answer.
    """
    given = annotation.get("answers") or []
    counts = Counter(str(item["answer"]) for item in given if isinstance(item, Mapping) and item.get("answer"))
    chosen = annotation.get("multiple_choice_answer")
    if not counts and not chosen:
        raise BadSampleError("the annotation has no 'answers' and no 'multiple_choice_answer'")
    most = max(counts.values(), default=0)
    if chosen and counts.get(str(chosen), 0) == most:
        return str(chosen)
    return next(answer for answer, count in counts.items() if count == most)


__all__ = ["most_frequent_answer", "vqa"]
