"""Question files of all tasks under the names they are known by, and images they are about."""

import json

import pytest

from tests.tiny import tiny_image
from vistok.evaluation.tasks import TASKS, QuestionFiles

IDS = (139, 285, 632)
# Records in the form of the official files of GVTBench (TencentARC/GVT, Apache-2.0).
OC = [
    {"image_id": 139, "text_in": "How many chairs are there in the image?", "text_out": "6", "n_obj_exist": 20},
    {"image_id": 139, "text_in": "How many people are there in the image?", "text_out": "2", "n_obj_exist": 20},
    {"image_id": 285, "text_in": "How many bears are there in the image?", "text_out": "1", "n_obj_exist": 1},
    {"image_id": 632, "text_in": "How many books are there in the image?", "text_out": "1", "n_obj_exist": 11},
]
MCI = [
    {"image_id": 285, "text_in": "Does bear exist in the image?", "text_out": "Yes.", "n_obj_exist": 1},
    {"image_id": 285, "text_in": "Does cup exist in the image?", "text_out": "No.", "n_obj_exist": 1},
    {"image_id": 632, "text_in": "Does bed exist in the image?", "text_out": "Yes.", "n_obj_exist": 11},
    {"image_id": 139, "text_in": "Does zebra exist in the image?", "text_out": "No.", "n_obj_exist": 20},
]
VCR = [
    {"image_id": "a/1.jpg", "text_in": "Does ties exist in the image?", "text_out": "Yes.", "n_obj_exist": 10},
    {"image_id": "a/1.jpg", "text_in": "Does cups exis in the image?", "text_out": "No.", "n_obj_exist": 10},
    {"image_id": "a/1.jpg", "text_in": "Does cups exis in the image?", "text_out": "No.", "n_obj_exist": 10},
    {"image_id": "b/2.jpg", "text_in": "Does dogs exis in the image?", "text_out": "No.", "n_obj_exist": 3},
]
CAPTIONS = {139: ["a living room", "a room with a table"], 285: ["a bear in the grass", "a large brown bear"],
            632: ["a bedroom with many books", "a bed beside a shelf"]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Question files of all tasks under the names they are known by, and the images they are about."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    for seed, number in enumerate(IDS):
        tiny_image(seed).save(tmp_path / "images" / f"{number:012d}.jpg")
    for seed, name in enumerate(("a/1.jpg", "b/2.jpg")):
        tiny_image(seed).save(tmp_path / "images" / name)
    answers = [{"answer": word} for word in ["red"] * 6 + ["dark red"] * 4]
    questions = [{"image_id": number, "question": "What colour is it?", "question_id": number} for number in IDS]
    annotations = [
        {"question_id": number, "multiple_choice_answer": "red", "answers": answers, "answer_type": "other"}
        for number in IDS
    ]
    pope = [
        {"question_id": row, "image": f"COCO_val2014_{number:012d}.jpg", "text": "Is there a bear?", "label": label}
        for row, (number, label) in enumerate(zip(IDS, ("no", "yes", "no")))
    ]
    seed_bench = [
        {"question_id": f"s{row}", "question_type_id": kind, "data_id": f"{number:012d}", "question": "What is it?",
         "choice_a": "a bear", "choice_b": "a bed", "choice_c": "a chair", "choice_d": "a cup", "answer": letter}
        for row, (number, kind, letter) in enumerate(zip(IDS, (1, 1, 5), "CAB"))
    ]  # fmt: skip
    files = {
        "coco_oc.json": OC,
        "coco_mci.json": MCI,
        "vcr_mci.json": VCR,
        "vqa_questions.json": {"questions": questions},
        "vqa_annotations.json": {"annotations": annotations},
        "captions.json": {
            "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in IDS],
            "annotations": [{"image_id": number, "caption": text} for number in IDS for text in CAPTIONS[number]],
        },
        "SEED-Bench.json": {"questions": seed_bench},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for split in ("random", "adversarial"):
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, pope)))
    return tmp_path


@pytest.fixture
def load(folder):
    def load(task, **options):
        files = QuestionFiles(**{"questions": folder, "images": folder / "images", **options})
        return TASKS[task].splits(files)

    return load
