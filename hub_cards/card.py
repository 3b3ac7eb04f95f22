"""Model cards, written from a model's folder and from what its training and evaluations recorded."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..modeling.atomic_folder import write_text_atomically
from ..modeling.base_weights import PREFIX
from ..modeling.trained_weights import TRAINED_WEIGHTS_NAME
from . import (
    card_facts,
    distillation_card,
    setok_card,
    setok_llava_card,
    setokim_card,
    tower_card,
    vtlmm_card,
)
from .card_evaluation import (
    evaluation_tables,
    further_metrics,
    model_index,
    normalised_report,
    report_title,
    type_table,
    unclear_gains,
)
from .card_floors import floors_in_words
from .card_header import as_list, card_header, check_card_fields, validate_card
from .card_lineage import data_of_all_runs, data_of_earlier_runs, licences_of_earlier_runs, models_made_of
from .published_text import published_text
from .run_results import RESULTS_NAME, merge_results

CARD_NAME = "README.md"
LOSS_CURVE_NAME = "loss.png"
# What vistok draws of a model, by the names that its commands give to pictures.
PICTURES = {
    "attention.png": "Where each visual token looks",
    "words.png": "The word that each patch is read as",
    "tokens.png": "The patches that each visual token is made of",
    "samples.png": "Images and what is made of them",
}
# By the kind of model: its type, or the trainer of the recipe that made it.
TEMPLATES = {
    "gvt": "gvt_card.md.jinja",
    vtlmm_card.KIND: "vtlmm_card.md.jinja",
    distillation_card.KIND: "distillation_card.md.jinja",
    setok_card.KIND: "setok_card.md.jinja",
    setok_llava_card.KIND: "setok_llava_card.md.jinja",
    setokim_card.KIND: "setokim_card.md.jinja",
    **dict.fromkeys(tower_card.KINDS, "tower_card.md.jinja"),
}
PIPELINE_TAGS = {
    "gvt": "image-text-to-text",
    vtlmm_card.KIND: "image-text-to-text",
    distillation_card.KIND: "image-feature-extraction",
    setok_card.KIND: "image-feature-extraction",
    setok_llava_card.KIND: "image-text-to-text",
    setokim_card.KIND: "image-text-to-text",
    **dict.fromkeys(tower_card.KINDS, "image-feature-extraction"),
}


def write_card(
    folder: str | os.PathLike,
    results: Mapping[str, Any] | None = None,
    title: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    description: str | None = None,
    limits: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
    benchmarks: Mapping[str, str] | None = None,
) -> Path:
    """
    Writes the card of a model, `README.md`, and brings its `results.json` up to date. What a folder lacks (an
    evaluation, a loss curve, a recipe) the card leaves out. It names no folder of this machine; written again it is
    the same.

    Args:
        folder (`str`): folder of a trained model: `config.json` and, where there are, `loss.png` and `results.json`.
        results (`Mapping`, *optional*): what the run recorded: `command`, `recipe`, `steps`, `epochs`, `train_loss`,
            `train_seconds`, `environment`, `parameters`, `metrics`, `skipped_samples`, `log_history`. By default what
            stands in `results.json`.
        title (`str`, *optional*): headline; by default the folder's name.
        license (`str`, *optional*): of the trained weights, by its SPDX name or the Hub's.
        language (`str` or `list[str]`, *optional*): ISO codes.
        description (`str`, *optional*): Markdown, below the headline.
        limits (`str` or `list[str]`, *optional*): what the model is not to be used for, or does badly.
        datasets (`str` or `list[str]`, *optional*): for the header, in place of what it read of the Hub.
        tags (`str` or `list[str]`, *optional*): further ones for the header.
        benchmarks (`Mapping[str, str]`, *optional*): data sets of the Hub by the tasks of evaluations, for the results
            that go with the model (see [`eval_result_files`]).

    Returns:
        `Path`: the card.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a field is malformed, `results.json` is damaged, or there is no template for such a model.
    """
    folder = _existing_folder(folder)
    fields = {
        "title": title,
        "license": license,
        "language": language,
        "description": description,
        "limits": limits,
        "datasets": datasets,
        "tags": tags,
        "benchmarks": benchmarks,
    }
    given = check_card_fields({name: value for name, value in fields.items() if value is not None})
    recorded = merge_results(folder, results or {}) if results or (folder / RESULTS_NAME).is_file() else {}
    from_recipe = (recorded.get("recipe") or {}).get("card") or {}
    known = {**from_recipe, **(recorded.get("card") or {}), **given}
    if known and known != recorded.get("card"):
        recorded = merge_results(folder, {"card": known})
    text = render_card(folder, recorded)
    validate_card(text, folder)
    write_text_atomically(folder / CARD_NAME, text)
    return folder / CARD_NAME


def write_evaluation(folder: str | os.PathLike, report: Mapping[str, Any]) -> Path:
    """
    Adds an evaluation to the `results.json` of a trained model and writes its card anew. One of the same task, split
    and number of questions takes the place of the former.

    Args:
        folder (`str`): folder that a training wrote.
        report (`Mapping`): `task`, `split`, `num_questions`, `accuracy`, `interval` (`[low, high]`, 95 %), `per_type`
            (name → `{accuracy, num_questions, …}`), `breakdowns` (column → groups like those of `per_type`), `floors`
            (`majority`, `question_only_prior`, `blank_images`, `shuffled_images` → accuracy, or a `dict` with
            accuracy, `per_type` and `breakdowns`), `command`, `unanswered` (number of questions). All but task, number
            of questions and accuracy are optional. Accuracies and intervals in percent, or as shares: if none of them
            is above 1 they are shares. `results.json` has them in percent.

    Returns:
        `Path`: the card.

    Raises:
        FileNotFoundError: if there is no such folder or no `results.json` in it.
        ValueError: if the report is malformed.
    """
    folder = check_has_results(folder)
    report = normalised_report(report)
    merge_results(folder, {"evaluation": [report]})
    return write_card(folder)


def check_has_results(folder: str | os.PathLike) -> Path:
    """
    Makes sure that an evaluation can be added to a model's folder.

    Args:
        folder (`str`): folder that a training wrote.

    Returns:
        `Path`: the same folder.

    Raises:
        FileNotFoundError: if there is no such folder or no `results.json` in it.
    """
    folder = _existing_folder(folder)
    if not (folder / RESULTS_NAME).is_file():
        raise FileNotFoundError(
            f"{folder} has no {RESULTS_NAME}: expected a folder that a training of vistok wrote. For another model "
            "call write_card(folder, results) first, with what is known of its training."
        )
    return folder


def render_card(
    folder: Path, results: Mapping[str, Any], name: str | None = None, code: str = "package", complete: bool = False
) -> str:
    """
    The text of a card.

    Args:
        folder (`Path`): of the model.
        results (`Mapping`): as they stand in `results.json`, with the section `card`.
        name (`str`, *optional*): what loads the model; by default the folder's name.
        code (`str`, *optional*, defaults to `"package"`): where its code is: `"package"` (vistok, which has to be
            imported), `"stub"` (vistok, which `trust_remote_code=True` imports too) or `"self-contained"`.
        complete (`bool`, *optional*, defaults to `False`): whether all weights are published, and not only those that
            were trained, whatever the folder holds.

    Returns:
        `str`: Markdown below a YAML header.

    Raises:
        ValueError: if there is no template for this type of model.
    """
    import jinja2  # torch and transformers' chat templates require it

    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None
    recipe = results.get("recipe") or {}
    kind = _kind(config, recipe)
    if kind not in TEMPLATES:
        raise ValueError(f"There is no card template for a model of type {kind!r}, only for {', '.join(TEMPLATES)}.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["table"] = markdown_table
    values = card_values(folder, results, config)
    values |= {"code": code, "trust": ", trust_remote_code=True" if code == "self-contained" else ""}
    values |= {"name": name} if name else {}
    values |= {"fetch": "", "only_trained": False} if complete else {}
    if kind == vtlmm_card.KIND:
        values |= vtlmm_card.vtlmm_card_values(results, config, values["models"])
    if kind == distillation_card.KIND:
        values |= distillation_card.distillation_card_values(folder, results, config)
    if kind == setok_card.KIND:
        values |= setok_card.setok_card_values(results, config)
    if kind == setok_llava_card.KIND:
        values |= setok_llava_card.setok_llava_card_values(folder, results, config)
    if kind == setokim_card.KIND:
        values |= setokim_card.setokim_card_values(results, config, values["models"])
    if kind in tower_card.KINDS and config is not None:
        values |= tower_card.tower_card_values(config)
    values["header"] = _header(kind, config, results, values)
    return published_text(environment.get_template(TEMPLATES[kind]).render(values))


def _kind(config: PreTrainedConfig | None, recipe: Mapping[str, Any]) -> str:
    if recipe.get("trainer") in TEMPLATES:
        return str(recipe["trainer"])
    return config.model_type if config is not None else (recipe.get("model") or {}).get("kind") or "gvt"


def markdown_table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """
    A table in Markdown.

    Args:
        rows (`Sequence[Sequence[str]]`): cells.
        header (`Sequence[str]`, *optional*): titles of the columns; by default the first row.
    """
    lines = [list(header), *rows] if header is not None else list(rows)
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def card_values(folder: Path, results: Mapping[str, Any], config: PreTrainedConfig | None) -> dict[str, Any]:
    recipe, fields = results.get("recipe") or {}, results.get("card") or {}
    model, sources = recipe.get("model") or {}, (recipe.get("data") or {}).get("train") or []
    models = models_made_of(config, results, folder)
    reports = results.get("evaluation") or []
    all_data = data_of_all_runs(results, sources)
    licences, no_licence = card_facts.licence_table(models, all_data)
    earlier_licences, earlier_without = licences_of_earlier_runs(results)
    only_trained = (folder / TRAINED_WEIGHTS_NAME).is_file()
    completing = card_facts.base_models(getattr(config, "base_models", None), folder) if only_trained else []
    to_fetch = dict.fromkeys(entry.name.removeprefix(PREFIX) for entry in completing if entry.package)
    return {
        "name": folder.resolve().name,
        "title": " ".join((fields.get("title") or folder.resolve().name).split()),
        "description": (fields.get("description") or "").strip(),
        "summary": _summary(config, models),
        "fetch": f"vistok fetch {' '.join(to_fetch)}" if to_fetch else "",
        "only_trained": only_trained,
        "architecture": []
        if not hasattr(config, "resampler_config")
        else card_facts.gvt_architecture(config, model.get("image_size")),
        "base_models": [
            [entry.part, f"`{entry.name}`", entry.package.description if entry.package else ""] for entry in models
        ],
        "trainable": [
            (part, card_facts.MODES.get(mode, mode)) for part, mode in (recipe.get("trainable") or {}).items()
        ],
        "parameters": _parameters(results.get("parameters") or {}),
        "data": card_facts.data_table(sources),
        "all_data": all_data,
        "models": models,
        "skipped": _skipped(results.get("skipped_samples")),
        "command": results.get("command") or "",
        "run": _run(results),
        "loss_curve": LOSS_CURVE_NAME if (folder / LOSS_CURVE_NAME).is_file() else "",
        "pictures": [(name, caption) for name, caption in PICTURES.items() if (folder / name).is_file()],
        "while_training": _while_training(results.get("metrics") or {}),
        "hyper_parameters": card_facts.hyper_parameters(recipe.get("training") or {}),
        "evaluation": evaluation_tables(reports),
        "floors": floors_in_words(reports),
        "reports": [
            {
                "title": report_title(report),
                "types": type_table(report),
                "further": further_metrics(report),
                "command": report.get("command") or "",
            }
            for report in reports
        ],
        "limits": [*as_list(fields.get("limits")), *unclear_gains(reports)],
        "licence": fields.get("license") or "",
        "licences": [*earlier_licences, *licences],
        "no_licence": [*earlier_without, *no_licence],
    }


def _summary(config: PreTrainedConfig | None, models: Sequence[card_facts.BaseModel]) -> str:
    names = {entry.part: f" ({entry.name})" for entry in models}
    tokenizer: Any = getattr(config, "resampler_config", None)
    count = "" if tokenizer is None else card_facts.token_count_in_words(tokenizer).split(",")[0]
    kind = "a resampler" if tokenizer is None or hasattr(tokenizer, "num_latents") else "a visual tokenizer"
    return (
        f"A GVT, which answers questions about images: a vision tower{names.get('vision', '')} sees the image, "
        f"{kind} turns its patch features into {f'{count} ' if count else ''}visual tokens, and a language model"
        f"{names.get('text', '')} reads them as if they were words."
    )


def _parameters(parameters: Mapping[str, int]) -> str:
    if not parameters.get("trained") or not parameters.get("all"):
        return ""
    trained, total = parameters["trained"], parameters["all"]
    share = 100 * trained / total
    return f"{trained:,} of {total:,} parameters were trained ({share:.2f} %)."


def _skipped(count: int | None) -> str:
    return f"{count:,} samples were left out because they could not be read." if count else ""


def _quantization(model: Mapping[str, Any]) -> str:
    if model.get("load_in_4bit"):
        kind = (model.get("quantization") or {}).get("bnb_4bit_quant_type") or "nf4"
        return f"vision tower and language model, in 4 bits ({kind.upper()})"
    return "vision tower and language model, in 8 bits" if model.get("load_in_8bit") else ""


def _run(results: Mapping[str, Any]) -> list[card_facts.Row]:
    losses = [entry["loss"] for entry in results.get("log_history") or [] if entry.get("loss") is not None]
    environment = results.get("environment") or {}
    model = (results.get("recipe") or {}).get("model") or {}
    rows = {
        "started from": model.get("checkpoint") or "",
        "data of earlier runs": data_of_earlier_runs(results),
        "quantised while training, unless trained in full": _quantization(model),
        "steps": card_facts.number(results["steps"]) if results.get("steps") else "",
        "epochs": f"{results['epochs']:.4g}" if results.get("epochs") else "",
        "training loss, mean over the run": f"{results['train_loss']:.4g}" if results.get("train_loss") else "",
        "training loss, as last logged": f"{losses[-1]:.4g}" if losses else "",
        "time": card_facts.duration(results["train_seconds"]) if results.get("train_seconds") else "",
        **{name: str(value) for name, value in environment.items()},
        "cost": card_facts.device_hours(str(environment.get("hardware") or ""), results.get("train_seconds")),
    }
    return [(name, value) for name, value in rows.items() if value]


def _while_training(metrics: Mapping[str, Any]) -> list[list[str]]:
    """The trainer's own measurements: of `eval_<name>_loss` and `eval_<name>_answer_accuracy` a row each name."""
    names = dict.fromkeys(
        key.removeprefix("eval_").removesuffix("loss").strip("_")
        for key in metrics
        if key.startswith("eval_") and key.endswith("loss")
    )
    rows = []
    for name in names:
        prefix = f"eval_{name}_" if name else "eval_"
        loss, accuracy = metrics.get(f"{prefix}loss"), metrics.get(f"{prefix}answer_accuracy")
        rows.append(
            [
                name or "evaluation data",
                "–" if loss is None else f"{loss:.4g}",
                "–" if accuracy is None else f"{100 * accuracy:.2f}",
            ]
        )
    return [["on", "loss (nats per answer token)", "answers right (%)"], *rows] if rows else []


def _header(kind: str, config: PreTrainedConfig | None, results: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    header = card_header(
        name=values["title"],
        model_type=kind if config is None else config.model_type,
        pipeline_tag=PIPELINE_TAGS[kind],
        fields=results.get("card") or {},
        base_models=[entry.hub_id for entry in values["models"] if entry.hub_id],
        datasets=card_facts.hub_datasets(values["all_data"]),
        eval_results=model_index(results.get("evaluation") or [], PIPELINE_TAGS[kind]),
    )
    return header.to_yaml()


def _existing_folder(folder: str | os.PathLike) -> Path:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {os.fspath(folder)}: expected that of a trained model.")
    return Path(folder)


__all__ = ["CARD_NAME", "check_has_results", "render_card", "validate_card", "write_card", "write_evaluation"]
