"""The questions of VQAv2, COCO captions, POPE and SEED-Bench as examples."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configuration.optional import require
from .prompt_texts import PAPER_PROMPT
from .task_metrics import vqa_metrics
from .task_questions import (
    QuestionFiles,
    Split,
    coco_names,
    collect,
    find_questions,
    first_image,
    images_folder,
    make_question,
    read_json,
)
from .vqa_accuracy import answer_vocabulary, in_vocabulary

CAPTION_PROMPTS = {
    "paper": "what does the image describe?",  # Section 4.1
    "reference": "Descibe the image in detail in a sentence: This is an image of ",  # sic
}


def _tested(collected: tuple[list[dict[str, Any]], int]) -> tuple[list[dict[str, Any]], None, int]:
    return collected[0], None, collected[1]


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

    examples, num_missing = collect(task, files, questions["questions"], convert)
    if files.vocabulary is None:
        return [Split("test", examples, num_missing=num_missing)]
    kept = in_vocabulary([example["answers"] for example in examples], _read_vocabulary(Path(files.vocabulary), task))
    if not any(kept):
        raise ValueError(f"None of the questions has an answer in the vocabulary {files.vocabulary}.")
    examples = [{**example, "in_vocabulary": known} for example, known in zip(examples, kept)]
    return [Split("test", examples, num_missing=num_missing, metrics=vqa_metrics(True))]


def _read_vocabulary(path: Path, task: str) -> set[str]:
    """The frequent answers of training questions."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of training annotations {path}, given as --vocabulary.")
    document = read_json(path, task)
    try:
        vocabulary = answer_vocabulary(record["multiple_choice_answer"] for record in document["annotations"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has no annotations with multiple_choice_answer: expected VQAv2's format.") from error
    if not vocabulary:
        raise ValueError(f"No answer in {path} is frequent enough for a vocabulary: give the annotations of training.")
    return vocabulary


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

    return [Split("test", *_tested(collect(task, files, described, convert)))]


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

    return [Split(name, *_tested(collect(task, files, load_pope(path), convert))) for name, path in found.items()]


def load_seed_bench_choices(task: str, files: QuestionFiles) -> list[Split]:
    """SEED-Bench: questions with four choices, the right one by its letter."""
    from .seed_bench import LETTERS, read_seed_bench, seed_bench_example

    path = find_questions(task, files, ("SEED-Bench.json", "seed_bench.json"))
    records, folder = read_seed_bench(path), images_folder(task, files)

    def convert(row: int, record: Mapping[str, Any]) -> dict[str, Any]:
        loaded = seed_bench_example(path, row, record, folder)
        question = loaded["messages"][0]["content"][-1]["text"]
        (image,) = loaded["images"]
        prompt = question if files.prompt_style == "reference" else PAPER_PROMPT.format(question=question)
        return make_question(
            task, row, Path(image["path"]), prompt, LETTERS[loaded["answer"]], question, loaded["id"],
            choices=loaded["choices"], dimension=loaded["dimension"],
        )  # fmt: skip

    return [Split("test", *_tested(collect(task, files, list(records.values()), convert, list(records))))]


__all__ = ["load_captions", "load_pope_splits", "load_seed_bench_choices", "load_vqa"]
