"""What else a set of scenes tells beside COCO's files: referring expressions, captions to draw from, and edits.

- `refs(vistok).json`: references as RefCOCO's, whose `ann_id` are those of `instances.json`; each sentence says its
  `kind` (a key of `EXPRESSION_KINDS`).
- `drawing_captions.json`: COCO captions; each annotation has `contents`, what a probe can look for in an image that is
  drawn from it: `{"name", "color", "count"}`.
- `edits/`: `seeds.json` and a folder for each edit, `{image_id * 100 + number:012d}`, with `0_0.jpg` (the scene),
  `0_1.jpg` (the scene after the edit) and `prompt.json`. Both images are JPEG of the same settings without subsampling
  of colours, so that blocks of 8 × 8 pixels that the edit leaves alone are equal to the bit. `edits/instances.json`
  holds the masks of the edited images, and of each in `edit` what was done to which annotation.
"""

import io
import json
import random
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from .cutouts import CutoutLibrary
from .image_edits import PROMPT_FILE, SEEDS_FILE
from .scene_annotations import QUESTIONS_PER_IMAGE, image_record, object_records
from .scene_edits import SceneEdit, scene_edits
from .scene_expressions import drawing_captions, scene_contents, scene_expressions
from .scene_layers import PhotographScene

REFERENCES_FILE = "refs(vistok).json"
DRAWING_CAPTIONS_FILE = "drawing_captions.json"
EDITS_FOLDER = "edits"
_SEED = "0"  # of each edit there is one pair of images
_JPEG_QUALITY = 92


def jpeg(image: Image.Image) -> bytes:
    """An image as it is written.

    Args:
        image (`PIL.Image.Image`): RGB.

    Returns:
        `bytes`: a JPEG file.
    """
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return content.getvalue()


def task_records(
    image_id: int,
    scene: PhotographScene,
    cutouts: CutoutLibrary,
    category_ids: Mapping[str, int],
    split: str,
    asked: Mapping[str, int],
    folder: Path,
    rng: random.Random,
) -> dict[str, list[Any]]:
    """Writes the edits of a scene, and returns its records for [`task_documents`].

    Args:
        image_id (`int`): id of the scene's image.
        scene (`PhotographScene`): the scene, with its layers.
        cutouts (`CutoutLibrary`): pictures that may be added.
        category_ids (`Mapping[str, int]`): id by noun.
        split (`str`): `"train"` or `"test"`.
        asked (`Mapping[str, int]`): how many `expressions`, `drawing_captions` and `edits`.
        folder (`Path`): where edits are written.
        rng (`random.Random`): random numbers.

    Returns:
        `dict[str, list]`: `references`, `drawing_captions` and `edits`.
    """
    records: dict[str, list[Any]] = {"references": [], "drawing_captions": [], "edits": []}
    if asked["expressions"]:
        records["references"] = _references(image_id, scene, category_ids, split, asked["expressions"], rng)
    if asked["drawing_captions"]:
        contents = scene_contents(scene)
        captions = drawing_captions(contents, cutouts.nouns, asked["drawing_captions"], rng)
        records["drawing_captions"] = [
            {
                "id": image_id * QUESTIONS_PER_IMAGE + number,
                "image_id": image_id,
                "caption": caption,
                "contents": contents,
            }
            for number, caption in enumerate(captions)
        ]
    if asked["edits"]:
        before = drawing_captions(scene_contents(scene), cutouts.nouns, 1, rng)[0]
        for number, edit in enumerate(scene_edits(scene, cutouts, asked["edits"], rng)):
            edit_id = image_id * QUESTIONS_PER_IMAGE + number
            place = folder / f"{edit_id:012d}"
            after = drawing_captions(scene_contents(edit.target), cutouts.nouns, 1, rng)[0]
            _write_edit(place, scene, edit, before, after)
            records["edits"].append(_edit_record(edit_id, image_id, edit, category_ids))
    return records


def _references(
    image_id: int,
    scene: PhotographScene,
    category_ids: Mapping[str, int],
    split: str,
    number: int,
    rng: random.Random,
) -> list[dict[str, Any]]:
    references: dict[int, dict[str, Any]] = {}
    for index, expression in enumerate(scene_expressions(scene, number, rng)):
        ann_id = image_id * QUESTIONS_PER_IMAGE + expression.number
        name = scene.objects[expression.number].name
        reference = references.setdefault(
            expression.number,
            {
                "ref_id": ann_id,
                "ann_id": ann_id,
                "image_id": image_id,
                "category_id": category_ids[name],
                "file_name": f"{image_id:012d}.jpg",
                "split": split,
                "sent_ids": [],
                "sentences": [],
            },
        )
        sent_id = image_id * QUESTIONS_PER_IMAGE + index
        reference["sent_ids"].append(sent_id)
        said = {"raw": expression.text, "sent": expression.text, "tokens": expression.text.split()}
        reference["sentences"].append({**said, "sent_id": sent_id, "kind": expression.kind})
    return [references[index] for index in sorted(references)]


def _write_edit(place: Path, scene: PhotographScene, edit: SceneEdit, before: str, after: str) -> None:
    place.mkdir()
    (place / f"{_SEED}_0.jpg").write_bytes(jpeg(scene.image))
    (place / f"{_SEED}_1.jpg").write_bytes(jpeg(edit.target.image))
    prompt = {"input": before, "edit": edit.instruction, "output": after, "kind": edit.kind}
    (place / PROMPT_FILE).write_text(json.dumps(prompt) + "\n", encoding="utf-8")


def _edit_record(edit_id: int, image_id: int, edit: SceneEdit, category_ids: Mapping[str, int]) -> dict[str, Any]:
    def annotation(first: int, index: int | None) -> int | None:
        return None if index is None else first * QUESTIONS_PER_IMAGE + index

    image = image_record(edit_id, edit.target, "")
    del image["pixels_sha256"]
    image["file_name"] = f"{edit_id:012d}/{_SEED}_1.jpg"
    image["edit"] = {
        "kind": edit.kind,
        "instruction": edit.instruction,
        "source_image_id": image_id,
        "source_annotation_id": annotation(image_id, edit.source_object),
        "target_annotation_id": annotation(edit_id, edit.target_object),
        "place": edit.place,
        "color": edit.color,
        "contents": scene_contents(edit.target),
    }
    return {"image": image, "objects": object_records(edit_id, edit.target, category_ids)}


def task_documents(
    scenes: Sequence[Mapping[str, Any]], instances: Mapping[str, Any], asked: Mapping[str, int]
) -> dict[str, Any]:
    """The files of a set of scenes that hold the records of all scenes.

    Args:
        scenes (sequence of `Mapping`): records of each scene, with those of [`task_records`].
        instances (`Mapping`): content of `instances.json`.
        asked (`Mapping[str, int]`): what is asked for.

    Returns:
        `dict[str, Any]`: content by file name.
    """
    shared = {"info": instances["info"], "licenses": []}
    files: dict[str, Any] = {}
    if asked["expressions"]:
        files[REFERENCES_FILE] = list(chain.from_iterable(scene["references"] for scene in scenes))
    if asked["drawing_captions"]:
        captions = list(chain.from_iterable(scene["drawing_captions"] for scene in scenes))
        files[DRAWING_CAPTIONS_FILE] = {**shared, "images": instances["images"], "annotations": captions}
    if asked["edits"]:
        edits = list(chain.from_iterable(scene["edits"] for scene in scenes))
        images = [edit["image"] for edit in edits]
        files[f"{EDITS_FOLDER}/{SEEDS_FILE}"] = [[Path(image["file_name"]).parent.name, [_SEED]] for image in images]
        files[f"{EDITS_FOLDER}/instances.json"] = {
            **shared,
            "images": images,
            "categories": instances["categories"],
            "annotations": list(chain.from_iterable(edit["objects"] for edit in edits)),
        }
    return files


__all__ = ["DRAWING_CAPTIONS_FILE", "EDITS_FOLDER", "REFERENCES_FILE", "jpeg", "task_documents", "task_records"]
