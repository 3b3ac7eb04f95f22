"""The ground truth of scenes in COCO's and VQAv2's formats."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .cutout_vocabulary import Noun
from .scene_layout import PhotographScene
from .scene_text import SceneQuestion

# Ids that no image of COCO has, so that a scene is never taken for one.
FIRST_IMAGE_ID = {"train": 100_000_000, "test": 200_000_000}
QUESTIONS_PER_IMAGE = 100  # question and annotation ids are the image's times this, as VQAv2's are times 1000


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask as COCO's uncompressed RLE, which pycocotools and [`decode_mask`] read as it is.

    Args:
        mask (`np.ndarray`): `(height, width)`, boolean.

    Returns:
        `dict`: `{"size": [height, width], "counts": [...]}`: lengths of runs down the columns, starting with those of
        pixels outside.
    """
    pixels = mask.T.reshape(-1)
    starts = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *starts, pixels.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if pixels[0] else runs}


def image_record(image_id: int, scene: PhotographScene, pixels_sha256: str) -> dict[str, Any]:
    """One entry of `images` of a COCO file, with the photograph behind the scene and a hash of its pixels."""
    return {
        "id": image_id,
        "file_name": f"{image_id:012d}.jpg",
        "width": scene.image.width,
        "height": scene.image.height,
        "background": scene.background.key,
        "pixels_sha256": pixels_sha256,
    }


def object_records(image_id: int, scene: PhotographScene, category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The entries of `annotations` of a COCO instances file that belong to an image, from the back to the front.

    Args:
        image_id (`int`): id of the image.
        scene (`PhotographScene`): what it shows.
        category_ids (`Mapping[str, int]`): id by noun.

    Returns:
        `list[dict]`: COCO's fields, of what is visible, and `cutout` (key of the picture), `photograph` (whether it is
        one) and `hidden` (the part that others hide).
    """
    return [
        {
            "id": image_id * QUESTIONS_PER_IMAGE + number,
            "image_id": image_id,
            "category_id": category_ids[item.name],
            "bbox": list(item.box),
            "area": item.area,
            "iscrowd": 0,
            "segmentation": run_lengths(item.mask),
            "cutout": item.cutout.key,
            "photograph": item.cutout.photograph,
            "hidden": round(item.hidden, 4),
        }
        for number, item in enumerate(scene.objects)
    ]


def caption_records(image_id: int, captions: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of `annotations` of a COCO captions file that belong to an image."""
    return [
        {"id": image_id * QUESTIONS_PER_IMAGE + number, "image_id": image_id, "caption": caption}
        for number, caption in enumerate(captions)
    ]


def question_records(
    image_id: int, questions: Sequence[SceneQuestion]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The entries of a VQAv2 questions file and of its annotations file that belong to an image."""
    asked, answered = [], []
    for number, item in enumerate(questions):
        question_id = image_id * QUESTIONS_PER_IMAGE + number
        asked.append({"image_id": image_id, "question": item.question, "question_id": question_id})
        answered.append(
            {
                "question_id": question_id,
                "image_id": image_id,
                "question_type": item.kind,
                "answer_type": "yes/no" if item.answer in ("yes", "no") else "other",
                "multiple_choice_answer": item.answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": index}
                    for index, answer in enumerate(item.answers, start=1)
                ],
            }
        )
    return asked, answered


def documents(
    scenes: Sequence[Mapping[str, Any]], nouns: Sequence[Noun], description: str, split: str
) -> dict[str, dict[str, Any]]:
    """The annotation files of a set of scenes.

    Args:
        scenes (sequence of `Mapping`): records of each scene: `image`, `objects`, `captions`, `questions`, `answers`.
        nouns (sequence of `Noun`): the classes, in the order of their ids, which start at 1.
        description (`str`): what the set is.
        split (`str`): its split.

    Returns:
        `dict[str, dict]`: content by file name.
    """
    info = {"description": description, "version": "1"}
    images = [scene["image"] for scene in scenes]
    categories = [
        {"id": number, "name": noun.name, "supercategory": noun.category} for number, noun in enumerate(nouns, start=1)
    ]

    def everything(part: str) -> list[Any]:
        return list(chain.from_iterable(scene[part] for scene in scenes))

    vqa = {"info": info, "license": {}, "data_type": "vistok scenes", "data_subtype": split}
    coco = {"info": info, "licenses": [], "images": images}
    return {
        "instances.json": {**coco, "categories": categories, "annotations": everything("objects")},
        "captions.json": {**coco, "annotations": everything("captions")},
        "vqa_questions.json": {**vqa, "task_type": "Open-Ended", "questions": everything("questions")},
        "vqa_annotations.json": {**vqa, "annotations": everything("answers")},
    }


__all__ = ["FIRST_IMAGE_ID", "documents", "run_lengths"]
