"""The data format `object-centric`: existence, counting and listing questions from labels of objects."""

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Dataset, Features, Value
from transformers.utils import logging

from ..processing.images import BadSampleError
from . import evaluation_images, object_labels, object_templates
from .data_examples import RAW_FEATURES, apply_prompt, bad_example, image_file, make_example, question_answer
from .data_formats import DataSource, known, register_data_format
from .data_records import cached_dataset, existing_file, file_digest
from .evaluation_images import OFFICIAL, ImageSet, images_to_exclude, official_images
from .object_labels import LabelledImages, ObjectLabels, read_instances, read_open_images
from .object_templates import OBJECT_KINDS, SpokenClass, check_templates, listed, spoken_classes
from .scene_text import NUMBER_WORDS

logger = logging.get_logger(__name__)

EXTRA_FEATURES = Features({"kind": Value("string"), "answer": Value("string"), "image_id": Value("string")})
ABSENT_DRAWS = ("balanced", "uniform")
_CODE = (__file__, object_labels.__file__, object_templates.__file__, evaluation_images.__file__)


@register_data_format("object-centric")
def object_centric(
    source: DataSource,
    kinds: Sequence[str] = OBJECT_KINDS,
    templates: str | Mapping[str, Any] = "vistok",
    per_image: int = 1,
    absent: str = "balanced",
    max_count: int = 9,
    exclude: str | int | Sequence[str | int] = (),
    allow_evaluation_images: bool = False,
    question_seed: int = 0,
    classes: str | None = None,
    image_labels: str | None = None,
    hierarchy: str | None = None,
) -> Dataset:
    """The object-centric tasks of GVT's training (Section 4.1 of the paper): is it there, how many, what is there?

    The labels are those of a COCO-format instances file (COCO, LVIS, Objects365, `vistok scenes`) or of OpenImages.
    Evaluation images are kept out: `exclude` leaves images out and says how many, and images of COCO that the official
    GVTBench questions are about stop the loading. Questions are made once and cached; they do not stream.

    Args:
        source (`DataSource`): `path` is an instances `.json`, or a `.csv` of OpenImages' boxes; `images` the folder of
            the images, by default the one called like the split beside the file.
        kinds (sequence of `str`): kinds of questions, of `"existence"`, `"counting"` and `"listing"`.
        templates (`str` or `Mapping`): wordings, see [`check_templates`]: `"vistok"`, `"gvtbench"`, `"counted-lists"`
            or lists by kind.
        per_image (`int`): classes of an image asked about by existence and by counting questions. There are as many
            questions about absent classes as about present ones, and one listing question.
        absent (`str`): how absent classes are drawn: `"balanced"`, so that each class is asked for as often in vain as
            not, or `"uniform"`.
        max_count (`int`): larger numbers are not asked for.
        exclude (`str`, `int` or list of them): images to leave out, see [`images_to_exclude`].
        allow_evaluation_images (`bool`): do not refuse images of the official GVTBench questions.
        question_seed (`int`): seed of the choice of classes and wordings.
        classes (`str`, *optional*): OpenImages' class descriptions (CSV).
        image_labels (`str`, *optional*): OpenImages' image labels verified by people (CSV), which say what is absent.
        hierarchy (`str`, *optional*): OpenImages' tree of classes (JSON).

    Returns:
        examples with the further columns `kind`, `answer` and `image_id`.

    Raises:
        FileNotFoundError: if a file or the folder of images is missing.
        ValueError: if a value is out of its range, a file is not what it should be, evaluation images are among the
            images, or nothing is left to ask.
    """
    if not isinstance(source.path, (str, os.PathLike)):
        raise ValueError(f"data source {source.name!r} needs one annotation file as `path`, got {source.path!r}.")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in kinds:
        known("kind of object-centric question", kind, OBJECT_KINDS)
    known("way to draw absent classes", absent, ABSENT_DRAWS)
    for name, value in (("per_image", per_image), ("max_count", max_count)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} of data source {source.name!r} must be a positive whole number, got {value!r}.")
    path = existing_file(source.path, str(source.name))
    more = {"classes": classes, "image_labels": image_labels, "hierarchy": hierarchy}
    files = {name: str(existing_file(file, str(source.name))) for name, file in more.items() if file is not None}
    _check_files(source, path, files, kinds)
    arguments: dict[str, Any] = {
        "path": str(path),
        "files": files,
        "source_name": str(source.name),
        "folder": _folder(source, path),
        "prompt": source.prompt,
        "wordings": check_templates(templates, kinds),
        "per_image": per_image,
        "absent": absent,
        "max_count": max_count,
        "seed": question_seed,
        "excluded": images_to_exclude(exclude),
        "allow_evaluation_images": allow_evaluation_images,
    }
    described = {name: value for name, value in arguments.items() if name != "excluded"}
    excluded = [sorted(arguments["excluded"].stems), sorted(map(repr, arguments["excluded"].ids))]
    stamp = [repr(sorted(described.items())), repr(excluded)]
    stamp += [file_digest(str(file)) for file in (path, *files.values(), *_CODE)]
    features = Features({**RAW_FEATURES, **EXTRA_FEATURES})
    return cached_dataset(generate_object_questions, arguments, features, stamp, str(source.name))


def _check_files(source: DataSource, path: Path, files: Mapping[str, str], kinds: Sequence[str]) -> None:
    open_images = path.suffix.lower() == ".csv"
    if not open_images and path.suffix.lower() != ".json":
        raise ValueError(f"cannot read {path}: expected an instances .json, or a .csv of OpenImages' boxes.")
    if files and not open_images:
        raise ValueError(f"the options {', '.join(files)} are for OpenImages' boxes (.csv), got {path}.")
    if open_images and "classes" not in files:
        raise ValueError(
            f"data source {source.name!r} needs OpenImages' class descriptions: set `classes` among its options."
        )
    if open_images and "existence" in kinds and "image_labels" not in files:
        raise ValueError(
            "a class without a box may be in an image of OpenImages all the same: existence questions need the labels "
            "verified by people; set `image_labels` among the options, or `kinds` to counting and listing."
        )


def _folder(source: DataSource, path: Path) -> str:
    if source.images is not None:
        candidates = [Path(source.images).expanduser().absolute()]
    else:
        split = source.split or path.stem.removeprefix("instances_")
        places = (path.parent, path.parent.parent, path.parent.parent / "images")
        candidates = [*(place / split for place in places), path.parent / "images"]
    found = next((folder for folder in candidates if folder.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"data source {source.name!r}: there is no image folder {candidates[0]}; set `images`."
        )
    return str(found)


def generate_object_questions(
    path: str,
    files: Mapping[str, str],
    source_name: str,
    folder: str,
    prompt: str | None,
    wordings: Mapping[str, list[dict[str, str]]],
    per_image: int,
    absent: str,
    max_count: int,
    seed: int,
    excluded: ImageSet,
    allow_evaluation_images: bool,
) -> Iterator[dict[str, Any]]:
    """The generator behind the format; see [`object_centric`] for the arguments.

    Yields:
        `dict`: an example per question; an image whose labels cannot be used is marked as a bad sample.
    """
    labels = read_open_images(path, **files) if files else read_instances(path)
    images = [image for image in labels.images if not excluded.holds(image.file_name, image.image_id)]
    if len(images) < len(labels.images):
        left_out = len(labels.images) - len(images)
        logger.warning(f"{source_name}: {left_out} of {len(labels.images)} images are left out by `exclude`.")
    if not allow_evaluation_images:
        _refuse_evaluation_images(images, source_name)
    spoken = spoken_classes(labels.classes)
    weights = _absent_weights(images, spoken, absent)
    layers = _layers_to_drop(images, folder)
    row = 0
    for image in images:
        rng = random.Random(f"vistok object-centric/{seed}/{image.image_id}")
        try:
            if image.problem is not None:
                raise BadSampleError(image.problem, path)
            picture = image_file(os.path.join(folder, *PurePosixPath(image.file_name).parts[layers:]))
            for kind, question, answer in _questions(
                image, labels, spoken, weights, wordings, per_image, max_count, rng
            ):
                messages = question_answer(apply_prompt(prompt, question), answer)
                identity: dict[str, Any] = {"id": f"{image.image_id}-{row}", "image_id": str(image.image_id)}
                yield make_example(source_name, row, [picture], messages, kind=kind, answer=answer, **identity)
                row += 1
        except BadSampleError as error:
            yield bad_example(source_name, row, BadSampleError(error.reason, error.file or path), EXTRA_FEATURES)
            row += 1


def _refuse_evaluation_images(images: Iterable[ObjectLabels], source_name: str) -> None:
    official = official_images()
    names = [image.file_name for image in images if official.holds(image.file_name)]
    if names:
        raise ValueError(
            f"data source {source_name!r} holds {len(names)} images of COCO val2017 that the official GVTBench "
            f"questions are about, such as {names[0]}: leave them out with the option `exclude: {OFFICIAL}`, or set "
            "`allow_evaluation_images: true` if nothing is to be evaluated on them."
        )


def _absent_weights(
    images: Sequence[ObjectLabels], spoken: Mapping[str, SpokenClass], absent: str
) -> dict[str, float]:
    """How likely each class is asked for where it is absent.

    Over N images, a class that f·N of them hold is asked for f·N times where it is present and, with a weight of
    f / (1 - f), about as often in the (1 - f)·N others.
    """
    if absent == "uniform":
        return dict.fromkeys(spoken, 1.0)
    present = Counter(name for image in images for name in image.counts)
    total = len(images) + 1
    return {name: present[name] / (total - present[name]) for name in spoken if present[name]}


def _layers_to_drop(images: Sequence[ObjectLabels], folder: str) -> int:
    """How many folders of the file names are not there on disk: Objects365's names start with `images/v1/`."""
    for image in images[:100]:
        parts = PurePosixPath(image.file_name).parts
        for layers in range(len(parts)):
            if os.path.isfile(os.path.join(folder, *parts[layers:])):
                return layers
    return 0


def _questions(
    image: ObjectLabels,
    labels: LabelledImages,
    spoken: Mapping[str, SpokenClass],
    weights: Mapping[str, float],
    wordings: Mapping[str, list[dict[str, str]]],
    per_image: int,
    max_count: int,
    rng: random.Random,
) -> Iterator[tuple[str, str, str]]:
    """Kind, question and answer of each question about an image."""
    present = [name for name in image.counts if name in spoken]
    if "existence" in wordings:
        missing = _draw_absent(image, labels, weights, per_image, rng)
        asked = rng.sample(present, min(per_image, len(present), len(missing)))
        for name, answer in [(name, "yes") for name in asked] + [(name, "no") for name in missing[: len(asked)]]:
            wording = rng.choice(wordings["existence"])
            words = asdict(spoken[name])
            yield "existence", wording["question"].format(**words), wording[answer].format(**words)
    if "counting" in wordings:
        countable = [name for name in present if name not in image.doubtful and image.counts[name] <= max_count]
        for name in rng.sample(countable, min(per_image, len(countable))):
            wording = rng.choice(wordings["counting"])
            count = image.counts[name]
            number = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)
            words = {**asdict(spoken[name]), "count": str(count), "number": number}
            yield "counting", wording["question"].format(**words), wording["answer"].format(**words)
    if "listing" in wordings and present:
        wording = rng.choice(wordings["listing"])
        answer = wording["answer"].format(**listed(image.counts, spoken, image.doubtful))
        yield "listing", wording["question"], answer


def _draw_absent(
    image: ObjectLabels, labels: LabelledImages, weights: Mapping[str, float], number: int, rng: random.Random
) -> list[str]:
    """Classes that are not in an image, each once."""
    held = {*image.counts}.union(*(labels.above.get(name, ()) for name in image.counts))
    candidates = labels.classes if image.absent is None else image.absent
    left = {name: weights[name] for name in dict.fromkeys(candidates) if name not in held and weights.get(name)}
    drawn: list[str] = []
    while left and len(drawn) < number:
        name = rng.choices(list(left), list(left.values()))[0]
        drawn.append(name)
        del left[name]
    return drawn


__all__ = ["generate_object_questions", "object_centric"]
