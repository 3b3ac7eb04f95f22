"""The data format `refcoco`: expressions that refer to one object of an image, whose mask is the answer."""

import io
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from ..processing.coco_masks import decode_mask
from ..processing.images import BadSampleError
from .data_examples import RAW_FEATURES, bad_example, image_file
from .data_formats import DataSource, known, register_data_format
from .data_records import cached_dataset, existing_file, file_digest
from .image_answers import TASK_FEATURES, image_answer, mask_image

INSTANCES_FILE = "instances.json"
REFERRING_FEATURES = Features(
    {
        **TASK_FEATURES,
        "expression": Value("string"),
        "ref_id": Value("string"),
        "category": Value("string"),
        "kind": Value("string"),
    }
)
# The images of RefCOCO, RefCOCO+ and RefCOCOg are COCO's of 2014; `vistok scenes` writes `images`.
IMAGE_FOLDERS = ("images", "train2014", "images/train2014", "images/mscoco/images/train2014")


class PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain values: lists, mappings, texts and numbers. Whatever would run code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every class and function.

        Args:
            module (`str`): its module.
            name (`str`): its name.

        Raises:
            ValueError: always; names it.
        """
        raise ValueError(f"it asks for {module}.{name}, which expressions do not need: it may run code")


@register_data_format("refcoco")
def refcoco(source: DataSource, split_by: str | None = None) -> Dataset | IterableDataset:
    """RefCOCO, RefCOCO+ and RefCOCOg as they are released (lichengunc/refer), and what `vistok scenes` writes.

    Args:
        source (`DataSource`): `path` is the folder that holds `instances.json` and the expressions, `refs(unc).p` or
            the same as JSON, or that file itself. Of a pickle, plain values are read and nothing is run. `split` is
            one of those of the expressions, such as `"train"`, `"val"`, `"testA"`; by default all. `images` is the
            folder of the images, by default `images` or `train2014` beside the file or its folder.
        split_by (`str`, *optional*): which expressions to take where the folder holds several, as in `"umd"`.

    Returns:
        one example per sentence, with the columns `task`, `expression` (without the prompt), `ref_id`, `category` and
        `kind` (of the expression, where the sentence says it, as those of `vistok scenes` do).

    Raises:
        FileNotFoundError: if a file or the folder of images is missing.
        ValueError: if a file is damaged, holds no expressions, or would run code, or the split is unknown.
    """
    file = _refs_file(source, split_by)
    instances = existing_file(file.parent / INSTANCES_FILE, str(source.name))
    folder = _image_folder(source, file.parent)
    refs = read_references(file)
    splits = sorted({str(ref.get("split")) for ref in refs})
    if source.split is not None:
        known(f"split of data source {source.name!r}", source.split, splits)
    arguments = {
        "file": str(file),
        "instances": str(instances),
        "folder": str(folder),
        "source": str(source.name),
        "split": source.split,
        "prompt": source.prompt,
    }
    code = [Path(__file__), Path(__file__).with_name("image_answers.py")]
    stamp = [repr(sorted(arguments.items())), *(file_digest(part) for part in (file, instances, *code))]
    features = Features({**RAW_FEATURES, **REFERRING_FEATURES})
    return cached_dataset(referring_examples, arguments, features, stamp, str(source.name))


def _refs_file(source: DataSource, split_by: str | None) -> Path:
    if source.path is None or isinstance(source.path, list):
        raise ValueError(f"data source {source.name!r} needs the folder of the expressions as `path`.")
    path = Path(source.path).expanduser().absolute()
    if not path.is_dir():
        return existing_file(path, str(source.name))
    found = {
        file.stem[len("refs(") : -1]: file
        for suffix in ("json", "p")
        for file in sorted(path.glob(f"refs(*).{suffix}"))
    }
    if not found:
        raise FileNotFoundError(
            f"data source {source.name!r}: {path} holds no expressions, such as refs(unc).p or refs(unc).json."
        )
    if split_by is None and len(found) > 1:
        raise ValueError(
            f"data source {source.name!r}: {path} holds expressions split by {' and by '.join(found)}: set the option "
            "split_by."
        )
    return found[known("split_by", split_by, found)] if split_by is not None else next(iter(found.values()))


def _image_folder(source: DataSource, beside: Path) -> Path:
    if source.images is not None:
        places = [Path(source.images).expanduser().absolute()]
    else:
        places = [place / name for place in (beside, beside.parent) for name in IMAGE_FOLDERS]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"data source {source.name!r}: there is no image folder {places[0]}; set `images`.")


def read_references(file: Path) -> list[Mapping[str, Any]]:
    """Reads the references of a pickle or a JSON file.

    Args:
        file (`Path`): a list of `{"ref_id", "ann_id", "split", "sentences", …}`; JSON if its name ends in `.json`.

    Returns:
        `list[dict]`: the references.

    Raises:
        ValueError: if it is damaged, would run code, or is no such list.
    """
    content = file.read_bytes()
    try:
        if file.suffix == ".json":
            refs = json.loads(content)
        else:  # Python 2 wrote those that are released
            refs = PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        kind = "JSON" if file.suffix == ".json" else "pickle of plain values"
        raise ValueError(f"{file} is no {kind}, or a damaged one: {error}.") from error
    is_list = isinstance(refs, list) and all(isinstance(ref, Mapping) for ref in refs)
    if not is_list or not all({"ref_id", "ann_id", "sentences"} <= ref.keys() for ref in refs):
        raise ValueError(f"{file} must hold a list of references with 'ref_id', 'ann_id' and 'sentences'.")
    return refs


def referring_examples(
    file: str, instances: str, folder: str, source: str, split: str | None, prompt: str | None
) -> Iterator[dict[str, Any]]:
    """The generator behind the format.

    Yields:
        `dict`: an example per sentence, bad ones marked.
    """
    images, annotations, categories = _instances(instances)
    row = -1
    for ref in read_references(Path(file)):
        if split is not None and str(ref.get("split")) != split:
            continue
        shown: tuple[dict[str, Any], dict[str, Any], str] | BadSampleError
        try:
            shown = _object(ref, images, annotations, categories, folder, instances)
        except BadSampleError as error:
            shown = error
        for sentence in ref["sentences"] if isinstance(ref["sentences"], list) else [None]:
            row += 1
            try:
                if isinstance(shown, BadSampleError):
                    raise shown
                image, mask, category = shown
                text, number, kind = _sentence(sentence)
                identity = row if number is None else number
                named = {"expression": text, "ref_id": str(ref["ref_id"]), "category": category, "kind": kind}
                yield image_answer(source, row, "segment", text, [image, mask], prompt, id=identity, **named)
            except BadSampleError as error:
                located = BadSampleError(f"reference {ref['ref_id']}: {error.reason}", error.file or file)
                yield bad_example(source, row, located, REFERRING_FEATURES)


def _sentence(sentence: Any) -> tuple[str, Any, str | None]:
    if not isinstance(sentence, Mapping):
        raise BadSampleError(f"a sentence must be an object with 'sent', got {sentence!r}")
    text = sentence.get("sent") or sentence.get("raw")
    if not isinstance(text, str) or not text.strip():
        raise BadSampleError(f"a sentence is empty: {dict(sentence)!r}")
    kind = sentence.get("kind")
    return text.strip(), sentence.get("sent_id"), None if kind is None else str(kind)


def _instances(file: str) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, str]]:
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
        images = {image["id"]: image for image in document["images"]}
        annotations = {annotation["id"]: annotation for annotation in document["annotations"]}
        return images, annotations, {item["id"]: str(item["name"]) for item in document.get("categories", [])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no file of COCO instances, or a damaged one: {error!r}.") from error


def _object(
    ref: Mapping[str, Any],
    images: Mapping[Any, Any],
    annotations: Mapping[Any, Any],
    categories: Mapping[Any, str],
    folder: str,
    instances: str,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Image, mask and category of what a reference is about."""
    annotation = annotations.get(ref["ann_id"])
    if annotation is None:
        raise BadSampleError(f"ann_id {ref['ann_id']!r} is not among the annotations", instances)
    image = images.get(annotation.get("image_id"))
    if image is None:
        raise BadSampleError(f"image_id {annotation.get('image_id')!r} is not among the images", instances)
    try:
        # The file_name of a reference names a crop of the image; that of the image is right.
        mask = decode_mask(annotation.get("segmentation"), (image["height"], image["width"]))
        name = image["file_name"]
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise BadSampleError(f"annotation {ref['ann_id']}: {error}", instances) from error
    if not mask.any():
        raise BadSampleError(f"the mask of annotation {ref['ann_id']} is empty", instances)
    shown = mask_image(mask, f"{name}/{ref['ann_id']}")
    return image_file(str(Path(folder) / name)), shown, categories.get(annotation.get("category_id"), "")


__all__ = ["PlainUnpickler", "read_references", "refcoco"]
