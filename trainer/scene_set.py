"""Sets of scenes with ground truth in COCO's formats: cut-outs composed over photographs."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..modeling.atomic_folder import write_folder_atomically
from .backgrounds import Background, load_backgrounds, plain_background
from .cutouts import SPLITS, CutoutLibrary, load_cutouts
from .data_formats import known
from .scene_annotations import (
    FIRST_IMAGE_ID,
    caption_records,
    documents,
    image_record,
    object_records,
    question_records,
)
from .scene_layout import (
    CLASSES_WEIGHTS,
    COUNT_WEIGHTS,
    OBJECT_SIZES,
    CountDistribution,
    check_classes,
    check_object_sizes,
    choose_classes,
    compose_scene,
)
from .scene_tasks import EDITS_FOLDER, jpeg, task_documents, task_records
from .scene_text import scene_captions, scene_vqa
from .scenes import scene_rng

logger = logging.get_logger(__name__)

SOURCE_FILE = "SOURCE.json"
REVISION = 1  # counted up when the same settings make other scenes
_LEAST_SIZE = 64
_MOST_SCENES = FIRST_IMAGE_ID["test"] - FIRST_IMAGE_ID["train"]


@dataclass(frozen=True)
class SceneSettings:
    """What the scenes of a set depend on, beside the pictures; see [`write_scenes`]."""

    split: str
    num_scenes: int
    classes: tuple[str, ...]
    size: int
    seed: int
    max_objects: int
    max_overlap: float
    count_weights: tuple[float, ...]
    classes_weights: tuple[float, ...]
    questions_per_scene: int
    captions_per_scene: int
    object_sizes: tuple[float, ...] = OBJECT_SIZES
    expressions_per_scene: int = 0
    drawing_captions_per_scene: int = 0
    edits_per_scene: int = 0
    plain_backgrounds: bool = False

    def __post_init__(self):
        known("split of the scenes", self.split, SPLITS)
        for name, least, most in (
            ("num_scenes", 1, _MOST_SCENES),
            ("size", _LEAST_SIZE, 4096),
            ("questions_per_scene", 0, 50),
            ("captions_per_scene", 1, 50),
            ("expressions_per_scene", 0, 50),
            ("drawing_captions_per_scene", 0, 50),
            ("edits_per_scene", 0, 20),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number between {least} and {most}, got {value!r}.")
        if not 0 <= self.max_overlap <= 0.9:
            raise ValueError(f"max_overlap must lie between 0 and 0.9, got {self.max_overlap!r}.")
        check_object_sizes(self.object_sizes)
        if not isinstance(self.plain_backgrounds, bool):
            raise ValueError(f"plain_backgrounds must be True or False, got {self.plain_backgrounds!r}.")


def write_scenes(
    folder: str | os.PathLike,
    *,
    split: str = "train",
    num_scenes: int = 1000,
    num_classes: int = 24,
    classes: Sequence[str] | None = None,
    size: int = 112,
    seed: int = 0,
    backgrounds: Sequence[str | os.PathLike] = (),
    max_objects: int = 9,
    max_overlap: float = 0.2,
    object_sizes: Sequence[float] = OBJECT_SIZES,
    count_weights: Sequence[float] = COUNT_WEIGHTS,
    classes_weights: Sequence[float] = CLASSES_WEIGHTS,
    questions_per_scene: int = 4,
    captions_per_scene: int = 5,
    expressions_per_scene: int = 0,
    drawing_captions_per_scene: int = 0,
    edits_per_scene: int = 0,
    plain_backgrounds: bool = False,
    num_proc: int = 1,
    apart_from: Sequence[str | os.PathLike] = (),
) -> Path:
    """Renders a set of scenes and writes it with its ground truth, whole or not at all.

    The folder then holds `images/{image_id:012d}.jpg`, `instances.json` (COCO instances, with masks of what is visible
    as RLE), `captions.json` (COCO captions), `vqa_questions.json` and `vqa_annotations.json` (VQAv2) and `SOURCE.json`
    (settings, classes, pictures, hashes). Where they are asked for, there are also expressions (`refs(vistok).json`,
    as RefCOCO's), captions to draw images from (`drawing_captions.json`, COCO captions) and edits (`edits`, as
    InstructPix2Pix's folder), which change nothing of the rest; see `scene_tasks.py`.

    The same arguments make the same scenes on every machine. Train and test share neither cut-outs nor background
    photographs.

    Args:
        folder (`str`): must not exist, or be empty.
        split (`str`): `"train"` or `"test"`.
        num_scenes (`int`): number of images.
        num_classes (`int`): classes; those with most pictures on both sides of the split.
        classes (sequence of `str`, *optional*): the classes by name, instead of `num_classes`.
        size (`int`): side of the square images, in pixels, at least 64.
        seed (`int`): seed of everything.
        backgrounds (sequence of `str`): folders of photographs to use instead of the fetched ones; the hash of
            a file's content says on which side of the split it is.
        max_objects (`int`): the most objects of an image, 1 to 9.
        max_overlap (`float`): the largest part of an object that others may hide.
        object_sizes (`tuple[float, float]`): the smallest and the largest longer side of an object, in sides of the
            image; small ones are commoner. Of n objects the largest is at most 0.82 / √n unless the smallest is more.
            Thin objects are longer than drawn, up to the largest side, so that they can be seen. Where the objects of
            a scene find no place, all of them shrink by a tenth until they do, also below the smallest side;
            `SOURCE.json` says of how many objects that is so (`shrunk_objects`). Cut-outs are enlarged 2.5 times at
            most, which matters in images of more than about 300 pixels.
        count_weights (sequence of `float`): how frequent the numbers 1, 2, … of a class are among all numbers of a
            class, over many scenes.
        classes_weights (sequence of `float`): how frequent scenes of one, two, … classes are.
        questions_per_scene (`int`): VQA questions of an image, where so many can be asked.
        captions_per_scene (`int`): captions of an image.
        expressions_per_scene (`int`): expressions that refer to one object of an image, where so many can be found.
        drawing_captions_per_scene (`int`): captions with classes, numbers and colours, of an image.
        edits_per_scene (`int`): edits of an image, where so many can be found: objects are moved, removed, painted or
            added.
        plain_backgrounds (`bool`): objects stand on one colour, another one in each scene, in place of photographs.
        num_proc (`int`): processes that render; what they render does not depend on it.
        apart_from (sequence of `str`): folders of other sets, with which this one must share no cut-out, background or
            image.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if an argument is out of its range, there are too few pictures or backgrounds, or the set is not
            apart from the others.
        FileExistsError: if `folder` holds something.
        FetchError: if the cut-outs or backgrounds are not in the cache; names the command that puts them there.
        BadSampleError: if a picture cannot be read.
    """
    libraries = {side: load_cutouts(split=side) for side in SPLITS}
    chosen = choose_classes(libraries["train"], libraries["test"], num_classes) if classes is None else list(classes)
    settings = SceneSettings(
        split,
        num_scenes,
        tuple(check_classes(libraries["train"], chosen)),
        size,
        seed,
        max_objects,
        max_overlap,
        tuple(count_weights),
        tuple(classes_weights),
        questions_per_scene,
        captions_per_scene,
        tuple(object_sizes),
        expressions_per_scene,
        drawing_captions_per_scene,
        edits_per_scene,
        plain_backgrounds,
    )
    if plain_backgrounds and backgrounds:
        raise ValueError("plain_backgrounds take the place of photographs: leave backgrounds out.")
    if plain_backgrounds:
        photographs = [plain_background(split)]
    else:
        photographs = load_backgrounds(split, backgrounds, without=settings.classes)
    return write_scenes_of(folder, settings, libraries[split], photographs, num_proc, apart_from)


def write_scenes_of(
    folder: str | os.PathLike,
    settings: SceneSettings,
    cutouts: CutoutLibrary,
    backgrounds: Sequence[Background],
    num_proc: int = 1,
    apart_from: Sequence[str | os.PathLike] = (),
) -> Path:
    """As [`write_scenes`], of the given pictures.

    Args:
        folder (`str`): must not exist, or be empty.
        settings (`SceneSettings`): what the scenes depend on.
        cutouts (`CutoutLibrary`): pictures; those of other classes are left out.
        backgrounds (sequence of `Background`): photographs.
        num_proc (`int`): processes that render.
        apart_from (sequence of `str`): folders of other sets.

    Returns:
        `Path`: the folder.
    """
    if not isinstance(num_proc, int) or num_proc < 1:
        raise ValueError(f"num_proc must be a whole number of at least 1, got {num_proc!r}.")
    others = {str(other): _read_source(Path(other)) for other in apart_from}
    distribution = CountDistribution(settings.max_objects, settings.count_weights, settings.classes_weights)
    nouns = [cutouts.nouns[name] for name in settings.classes]
    library = CutoutLibrary((cutout for cutout in cutouts if cutout.name in settings.classes), nouns)
    pictures = {
        "cutouts": sorted(cutout.key for cutout in library),
        "collections": sorted({cutout.collection for cutout in library}),
        "backgrounds": {item.key: item.sha256 for item in backgrounds if not item.is_plain},
    }
    for name, other in others.items():
        _check_apart({**pictures, "pixels_sha256": []}, other, name)
    with write_folder_atomically(Path(folder).expanduser().absolute()) as work:
        for name in ("images", *([EDITS_FOLDER] if settings.edits_per_scene else [])):
            (work / name).mkdir()
        render = partial(_render, settings, distribution, library, list(backgrounds), work)
        scenes = list(
            logging.tqdm(
                _in_processes(render, settings.num_scenes, num_proc),
                total=settings.num_scenes,
                desc=f"Rendering scenes ({settings.split})",
            )
        )
        description = f"vistok scenes: {settings.num_scenes} scenes of {len(nouns)} classes ({settings.split})"
        files = {}
        contents = documents(scenes, nouns, description, settings.split)
        contents |= task_documents(scenes, contents["instances.json"], _asked_tasks(settings))
        for file, content in contents.items():
            encoded = json.dumps(content, separators=(",", ":")).encode()
            (work / file).write_bytes(encoded)
            files[file] = hashlib.sha256(encoded).hexdigest()
        source = {
            "revision": REVISION,
            "settings": asdict(settings),
            "objects": sum(len(scene["objects"]) for scene in scenes),
            "shrunk_objects": sum(scene["shrunk_objects"] for scene in scenes),
            **pictures,
            "pixels_sha256": [scene["image"]["pixels_sha256"] for scene in scenes],
            "files_sha256": files,
        }
        for name, other in others.items():
            _check_apart(source, other, name)
        (work / SOURCE_FILE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    return Path(folder)


def _in_processes(render: Any, number: int, num_proc: int) -> Iterator[dict[str, Any]]:
    if num_proc == 1:
        yield from map(render, range(number))
        return
    # Not forked: a process that has run PyTorch holds locks of its threads.
    with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
        yield from pool.imap(render, range(number), chunksize=16)


def _render(
    settings: SceneSettings,
    distribution: CountDistribution,
    library: CutoutLibrary,
    backgrounds: list[Background],
    work: Path,
    index: int,
) -> dict[str, Any]:
    """Renders one scene, writes its image and returns its records."""
    rng = scene_rng(settings.seed, f"photographs/{settings.split}", index)
    counts = distribution.draw(settings.classes, rng)
    scene = compose_scene(
        library, backgrounds, counts, settings.size, settings.max_overlap, rng, settings.object_sizes
    )
    image_id = FIRST_IMAGE_ID[settings.split] + index
    record = image_record(image_id, scene, hashlib.sha256(scene.image.tobytes()).hexdigest())
    (work / "images" / record["file_name"]).write_bytes(jpeg(scene.image))
    questions, answers = question_records(image_id, scene_vqa(scene, library, settings.questions_per_scene, rng))
    category_ids = {name: number for number, name in enumerate(settings.classes, start=1)}
    asked = _asked_tasks(settings)
    task_rng = scene_rng(settings.seed, f"photographs/{settings.split}/tasks", index)
    return {
        **task_records(image_id, scene, library, category_ids, settings.split, asked, work / EDITS_FOLDER, task_rng),
        "image": record,
        "objects": object_records(image_id, scene, category_ids),
        "captions": caption_records(image_id, scene_captions(scene, library.nouns, settings.captions_per_scene, rng)),
        "questions": questions,
        "answers": answers,
        "shrunk_objects": scene.shrunk_objects,
    }


def _asked_tasks(settings: SceneSettings) -> dict[str, int]:
    """How many expressions, drawing captions and edits of a scene are asked for."""
    return {
        "expressions": settings.expressions_per_scene,
        "drawing_captions": settings.drawing_captions_per_scene,
        "edits": settings.edits_per_scene,
    }


def check_scenes_apart(folder: str | os.PathLike, other: str | os.PathLike) -> None:
    """Checks that two sets of scenes share no cut-out, no background photograph and no image.

    Args:
        folder (`str`): a set that `vistok scenes` wrote.
        other (`str`): another one.

    Raises:
        ValueError: if they share something; says what and how much of it.
        FileNotFoundError: if one of them has no `SOURCE.json`.
    """
    _check_apart(_read_source(Path(folder)), _read_source(Path(other)), str(other))


def _check_apart(source: dict[str, Any], other: dict[str, Any], name: str) -> None:
    def shared(key: str, values: Any = lambda value: value) -> list[str]:
        return sorted({*values(source[key])} & {*values(other[key])})

    for what, common in (
        ("cut-outs", shared("cutouts")),
        ("background photographs", shared("backgrounds", dict.values)),
        ("images", shared("pixels_sha256")),
    ):
        if common:
            raise ValueError(
                f"the scenes share {len(common)} {what} with those of {name}, such as {common[0]}: one of the two "
                "must be of the other split."
            )


def _read_source(folder: Path) -> dict[str, Any]:
    file = folder.expanduser() / SOURCE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no set of scenes: it holds no {SOURCE_FILE}.")
    source = json.loads(file.read_text(encoding="utf-8"))
    missing = {"cutouts", "backgrounds", "pixels_sha256"} - {*source}
    if missing:
        raise ValueError(f"{file} is not that of a set of scenes: it lacks {', '.join(sorted(missing))}.")
    return source


__all__ = ["SceneSettings", "check_scenes_apart", "write_scenes", "write_scenes_of"]
