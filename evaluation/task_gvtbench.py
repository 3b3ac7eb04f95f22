"""GVTBench's questions as examples: of an official file, or built from COCO instances or the metadata of VCR."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .gvtbench_questions import (
    build_questions,
    find_image,
    first_rows,
    fix_question_typos,
    load_questions,
    official_name,
)
from .prompt_texts import PAPER_PROMPT
from .task_questions import QuestionFiles, Split, collect, find_questions, images_folder, make_question, mark_distinct

logger = logging.get_logger(__name__)

VCR_FOLDER = "vcr1images"


def load_gvtbench(task: str, files: QuestionFiles) -> list[Split]:
    """Object counting or multi-class identification: an official file, or questions that are built, whatever the file
    is called."""
    kind = task.removeprefix("coco_").removeprefix("vcr_")
    path = _question_file(task, files)
    records = _gvtbench_records(task, kind, path, files.seed)
    _check_kind(task, kind, path, records)
    folder = images_folder(task, files)
    variants = {"test": records}
    if task == "vcr_mci" and files.fix_typos != "no":
        fixed = {"typos-fixed": fix_question_typos(records)}
        variants = fixed if files.fix_typos == "yes" else variants | fixed
    splits = []
    for name, asked in variants.items():
        firsts = first_rows(asked)

        def convert(row: int, record: Mapping[str, Any], firsts=firsts) -> dict[str, Any]:
            question = record["text_in"]
            prompt = PAPER_PROMPT.format(question=question) if files.prompt_style == "paper" else question
            columns = {"objects": _bin_of_objects(record["n_obj_exist"])} if kind == "mci" else {}
            columns |= {"counted": _bin_of_count(record["text_out"])} if kind == "oc" else {}
            return make_question(
                task, row, find_image(record, folder), prompt, record["text_out"], question, **columns,
                n_obj_exist=record["n_obj_exist"], copy_of=firsts[row],
            )  # fmt: skip

        examples, num_missing = collect(task, files, asked, convert)
        splits.append(Split(name, mark_distinct(examples), num_missing=num_missing))
    return splits


def _question_file(task: str, files: QuestionFiles) -> Path:
    """An official file, or what questions can be built from: instances of COCO, metadata of VCR."""
    if task.startswith("vcr_"):
        if files.questions is not None and Path(files.questions).name == VCR_FOLDER:
            return Path(files.questions)
        return find_questions(task, files, (f"{task}.json", "val.jsonl", VCR_FOLDER))
    names = ["instances.json", "instances_val2017.json", "instances_val2014.json"]
    if files.questions is not None and Path(files.questions).is_dir():
        names += sorted(file.name for file in Path(files.questions).glob("instances*.json"))
    return find_questions(task, files, (f"{task}.json", *names))


def _gvtbench_records(task: str, kind: str, path: Path, seed: int) -> list[dict[str, Any]]:
    if path.is_dir() or path.suffix == ".jsonl" or _is_annotated(path):
        records = build_questions(path, kind, seed=seed, names=task.partition("_")[0])
        logger.warning(f"{task}: built {len(records):,} questions from {path}; they are not the official ones.")
        return records
    official = official_name(path)
    if official not in (None, task):
        raise ValueError(f"{path} is the official question file of task {official}, not of {task}.")
    return load_questions(path)


def _is_annotated(path: Path) -> bool:
    """Whether a file holds annotated images, and no questions."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        return False  # told by what reads it
    return isinstance(document, dict) and ("annotations" in document or "names" in document)


def _check_kind(task: str, kind: str, path: Path, records) -> None:
    begins = {"oc": "How many", "mci": "Does"}[kind]
    row = next((row for row, record in enumerate(records) if not record["text_in"].startswith(begins)), None)
    if row is not None:
        raise ValueError(
            f"{path}, row {row}: {records[row]['text_in']!r} is no question of task {task}, whose questions begin "
            f"with {begins!r}: give the question file of this task."
        )


def _bin_of_count(answer: str) -> str:
    """The bins of the released code: the right count divided by three."""
    start = 3 * (int(answer) // 3)
    return f"{max(start, 1)}–{start + 2} objects"


def _bin_of_objects(number: int) -> str:
    return "<10 objects" if number < 10 else "10–19 objects" if number < 20 else "≥20 objects"


__all__ = ["load_gvtbench"]
