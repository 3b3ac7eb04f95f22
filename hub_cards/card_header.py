"""The header of a card: what the Hub reads, made of what is known and checked without a network."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # as huggingface_hub itself reads and writes headers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .eval_result_files import check_benchmarks
from .published_text import published_text

CARD_FIELDS = ("title", "license", "language", "description", "limits", "datasets", "tags", "benchmarks")
"""What a user may set: the fields of a recipe's section `card`."""

_LISTS = ("language", "limits", "datasets", "tags")
_PIPELINE_TAGS = ("image-text-to-text", "image-feature-extraction", "image-segmentation", "any-to-any")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]+)?|code|multilingual")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")

_HUB_LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma
gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql
unknown unlicense wtfpl zlib
"""
HUB_LICENCES = frozenset(_HUB_LICENCES.split())
"""What the Hub takes as `license`; any other becomes `other` with its name beside it."""


def check_card_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Checks the fields of a card that a user sets; a recipe does so before its training, not after.

    Args:
        fields (`Mapping`): `title`, `license` and `description` (text); `language`, `limits`, `datasets` and `tags`
            (text or a list of texts); `benchmarks` (see [`eval_result_files`]).

    Returns:
        `dict`: the same.

    Raises:
        ValueError: if a field is unknown, of the wrong type, or the language is no ISO code.
    """
    for name, value in fields.items():
        if name not in CARD_FIELDS:
            raise ValueError(f"{name!r} is no field of a card, which has: {', '.join(CARD_FIELDS)}.")
        if name == "benchmarks":
            check_benchmarks({} if value is None else value)
            continue
        if name in _LISTS and isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            continue
        if value is not None and not isinstance(value, str):
            expected = "text or a list of texts" if name in _LISTS else "text"
            raise ValueError(f"{name} of the card is {value!r}, expected {expected}.")
    for language in as_list(fields.get("language")):
        if not _LANGUAGE.fullmatch(language):
            raise ValueError(f"The card's language is {language!r}, expected an ISO 639 code such as 'en'.")
    return dict(fields)


def as_list(value: str | Sequence[str] | None) -> list[str]:
    """One text or several, as a list."""
    return [value] if isinstance(value, str) and value else list(value or [])


def card_header(
    name: str,
    model_type: str,
    pipeline_tag: str,
    fields: Mapping[str, Any],
    base_models: Sequence[str],
    datasets: Sequence[str],
    eval_results: list[EvalResult],
) -> ModelCardData:
    """
    The metadata of a card.

    Args:
        name (`str`): of the model.
        model_type (`str`): as in its config.
        pipeline_tag (`str`): the Hub's name of its task.
        fields (`Mapping`): see [`check_card_fields`].
        base_models (`Sequence[str]`): Hub ids.
        datasets (`Sequence[str]`): Hub ids of the training data.
        eval_results (`list[EvalResult]`): the results of its evaluations.
    """
    licence = _hub_licence(fields.get("license"))
    return ModelCardData(
        **licence,
        language=as_list(fields.get("language")) or None,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        base_model=list(dict.fromkeys(base_models)) or None,
        datasets=list(dict.fromkeys(as_list(fields.get("datasets")) or datasets)) or None,
        tags=["vistok", model_type, *as_list(fields.get("tags"))],
        metrics=list(dict.fromkeys(result.metric_type for result in eval_results)) or None,
        model_name=name if eval_results else None,
        eval_results=eval_results or None,
    )


def _hub_licence(licence: str | None) -> dict[str, Any]:
    if not licence:
        return {}
    if licence.lower() in HUB_LICENCES:
        return {"license": licence.lower()}
    return {"license": "other", "license_name": _slug(licence).lower()}


def _slug(name: str) -> str:
    """A name as the Hub spells names: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]+|-{2,}|\.{2,}", "-", name).strip("-.")


def validate_card(text: str, folder: Path | None = None) -> ModelCard:
    """
    Checks a card without a network, for what the Hub would refuse and for what should not be published.

    Args:
        text (`str`): the card.
        folder (`Path`, *optional*): where the pictures that it shows must lie.

    Returns:
        `ModelCard`: the card, parsed.

    Raises:
        ValueError: if the header is no YAML or holds what the Hub refuses, the card has no text, a picture is missing,
            or the card names a folder of a machine or holds a credential.
    """
    if not text.startswith("---\n"):
        raise ValueError(f"The card begins with {text[:20]!r}, expected a YAML header between lines of ---.")
    try:
        card = ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"The header of the card is malformed: {error}") from error
    if not card.text.strip():
        raise ValueError("The card has a header and no text.")
    _check_header(card.data.to_dict())
    for picture in _PICTURE.findall(card.text):
        if folder is not None and "://" not in picture and not (folder / picture).is_file():
            raise ValueError(f"The card shows {picture}, which is not in {folder}: put it there.")
    if (clean := published_text(text)) != text:
        lines = zip(text.splitlines(), clean.splitlines(), strict=False)
        found = next(line for line, clean_line in lines if line != clean_line)
        raise ValueError(f"The card names a folder of a machine or holds a credential: {found!r}. Take it out.")
    return card


def _check_header(header: Mapping[str, Any]) -> None:
    if header.get("license", "other") not in HUB_LICENCES:
        raise ValueError(f"license is {header['license']!r}, which the Hub does not know: use other and license_name.")
    if header.get("pipeline_tag", _PIPELINE_TAGS[0]) not in _PIPELINE_TAGS:
        raise ValueError(f"pipeline_tag is {header['pipeline_tag']!r}, expected one of {', '.join(_PIPELINE_TAGS)}.")
    check_card_fields({key: header[key] for key in ("language", "tags", "datasets") if key in header})
    for field in ("base_model", "datasets"):
        for name in as_list(header.get(field)):
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise ValueError(f"{field} names {name!r}, expected an id of the Hub: {error}") from error


__all__ = ["CARD_FIELDS", "HUB_LICENCES", "card_header", "check_card_fields", "validate_card"]
