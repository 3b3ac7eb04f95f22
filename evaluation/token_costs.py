"""What visual tokens cost and what they are worth: FLOPs, prefill, a step of training and accuracy, side by side."""

import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from ..modeling.atomic_folder import write_text_atomically
from .image_text_models import ImageTextModel
from .prediction_checks import check_positive

logger = logging.get_logger(__name__)

QUESTION = "What is in the image?"
IGNORED = -100
FILE_NAME = "token_costs"
MEASURES = ("tokens", "encoding_gflops", "prefill_gflops", "encoding_ms", "prefill_ms", "step_ms")
COLUMNS = {
    "tokens": "visual tokens",
    "prefill_gflops": "prefill, GFLOP",
    "prefill_ms": "prefill, ms",
    "step_ms": "step of training, ms",
    "encoding_gflops": "image to tokens, GFLOP",
    "encoding_ms": "image to tokens, ms",
}
NOTES = (
    "FLOPs are counted by torch's FlopCounterMode (two for each multiplication with addition), per image. Prefill: "
    "the language model reads the prompt with visual tokens that are there already. Step of training: forward and "
    "backward with everything trained but vision tower and visual tokenizer. Times are medians over rounds in which "
    "all take turns."
)


@dataclass(frozen=True)
class CostedModel:
    """
    A trained model whose visual tokens are to be costed.

    Args:
        label (`str`): what tables call it, such as `"resampler"`.
        path (`str`): folder or Hub id.
    """

    label: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "CostedModel":
        """
        One as it is written on a command line: `FOLDER`, or `LABEL=FOLDER`.

        Raises:
            ValueError: if label or folder is empty.
        """
        label, separator, path = text.rpartition("=")
        label = label if separator else Path(path).name
        if not label.strip() or not path.strip():
            raise ValueError(f"{text!r} names no model: write FOLDER, or LABEL=FOLDER.")
        return cls(label.strip(), path.strip())


def measure_costs(
    models: Sequence[CostedModel],
    images: Sequence[Image.Image],
    *,
    question: str = QUESTION,
    rounds: int = 5,
    batch_size: int = 4,
    dtype: str = "auto",
    device: str = "cpu",
    reports: Sequence[str | os.PathLike] = (),
) -> dict[str, Any]:
    """
    Compares what the visual tokens of several trained models cost (SeTok, Table 5): all patches, a fixed number, soft
    or hard clusters, a resampler. All are in memory at once, and take turns.

    Args:
        models (`list[CostedModel]`): composed models of vistok, the first of them the one that ratios refer to.
        images (`list[PIL.Image.Image]`): RGB; costs are means over these.
        question (`str`, *optional*): about each image.
        rounds (`int`, *optional*, defaults to 5): how often each is timed, after a round that is not.
        batch_size (`int`, *optional*, defaults to 4): images at once, in which the longest decides on the length.
        dtype (`str`, *optional*, defaults to `"auto"`): of the models, by default as saved.
        device (`str`, *optional*, defaults to `"cpu"`): where they run.
        reports (`list[str]`, *optional*): folders with reports of `vistok evaluate`, or such files, whose scores are
            put beside the model that they name.

    Returns:
        `dict`: `rows`, for each model `label`, `model`, `tokens` (mean per image), `encoding_gflops` and
        `prefill_gflops`, `encoding_ms`, `prefill_ms`, `step_ms` (per image), `scores` (of each task `label`, `value`
        in its scale and `interval`); and `num_images`, `rounds`, `batch_size`, `device`, `dtype`, `threads`.

    Raises:
        ValueError: if there are no models or images, labels repeat, or a model is none of vistok's composed ones.
        FileNotFoundError: if a report is missing.
    """
    check_positive(rounds=rounds, batch_size=batch_size)
    labels = [model.label for model in models]
    if not models or len(set(labels)) < len(labels):
        raise ValueError(f"The models are called {', '.join(labels) or 'nothing'}: give some, with different labels.")
    if not images:
        raise ValueError("There are no images to measure costs on.")
    scores = _scores(models, reports)
    attention = "eager" if device.startswith("cpu") else None  # whose FLOPs are counted on every device
    contenders = []
    for model in models:
        loaded = ImageTextModel.from_pretrained(model.path, dtype, device, attention, batch_size)
        if not loaded.is_composed:
            raise ValueError(
                f"{model.path} is no composed model of vistok, so its visual tokens cannot be told apart."
            )
        contenders.append(_Contender(model, loaded, images, question))
    for number in logging.tqdm(range(1 + rounds), desc="Measuring costs", unit=" rounds"):
        for contender in contenders:
            contender.run(is_counted=number > 0)
    rows = [{**contender.costs(), "scores": scores[contender.model.label]} for contender in contenders]
    return {
        "rows": rows,
        "num_images": len(images),
        "question": question,
        "rounds": rounds,
        "batch_size": batch_size,
        "device": device,
        "dtype": str(contenders[0].answerer.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


class _Contender:
    """A model with its inputs, and what it took to read them."""

    def __init__(self, model: CostedModel, answerer: ImageTextModel, images: Sequence[Image.Image], question: str):
        self.model, self.answerer = model, answerer
        loaded, processor = answerer.model, answerer.processor
        core = loaded.model
        for parameter in loaded.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        for part in (core.vision_tower, core.visual_tokenizer):
            part.requires_grad_(False)
        example = {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]}
        self.batches = []
        for start in range(0, len(images), answerer.batch_size):
            some = list(images[start : start + answerer.batch_size])
            prompts = _prompts(processor, example, len(some))
            inputs = processor(images=[[image] for image in some], text=prompts, return_tensors="pt", padding=True)
            names = ("input_ids", "attention_mask", "pixel_values")
            self.batches.append({name: inputs[name].to(loaded.device) for name in names})
        self.num_images = len(images)
        self.seconds: dict[str, list[float]] = {"encoding": [], "prefill": [], "step": []}
        self.flops = {"encoding": 0, "prefill": 0}
        self.tokens = 0

    def run(self, is_counted: bool) -> None:
        """Reads all images; the first time, which does not count, to count FLOPs and tokens."""
        loaded = self.answerer.model
        taken = dict.fromkeys(self.seconds, 0.0)
        for inputs in self.batches:
            text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            counters = {} if is_counted else {name: FlopCounterMode(display=False) for name in self.flops}
            encode = functools.partial(loaded.get_image_features, inputs["pixel_values"].to(loaded.dtype))
            with torch.no_grad(), counters.get("encoding", nullcontext()):
                seconds, features = _timed(encode, loaded.device)
            taken["encoding"] += seconds
            prefill = functools.partial(
                loaded, **text, mm_encoder_outputs={"image": features}, use_cache=True, logits_to_keep=1
            )
            with torch.no_grad(), counters.get("prefill", nullcontext()):
                taken["prefill"] += _timed(prefill, loaded.device)[0]
            if not is_counted:
                self.tokens += _num_tokens(features, len(inputs["pixel_values"]))
                for name, counter in counters.items():
                    self.flops[name] += counter.get_total_flops()
            taken["step"] += _timed(functools.partial(self._step, inputs), loaded.device)[0]
        if is_counted:
            for name, seconds in taken.items():
                self.seconds[name].append(seconds)

    def _step(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Forward and backward of the text alone; of the image what is frozen is read again, as in training."""
        loaded = self.answerer.model
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
        labels = labels.masked_fill(labels == self.answerer.processor.image_token_id, IGNORED)
        loaded(**inputs, labels=labels, skip_logits=True).loss.backward()
        loaded.zero_grad(set_to_none=True)

    def costs(self) -> dict[str, Any]:
        found: dict[str, Any] = {"label": self.model.label, "model": self.model.path}
        found["tokens"] = self.tokens / self.num_images
        for name, number in self.flops.items():
            found[f"{name}_gflops"] = number / self.num_images / 1e9
        for name, seconds in self.seconds.items():
            found[f"{name}_ms"] = 1e3 * statistics.median(seconds) / self.num_images
        return found


def _prompts(processor: Any, example: Mapping[str, Any], number: int) -> list[str]:
    messages = [dict(message) for message in example["messages"]]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return [prompt] * number


def _num_tokens(features: Any, num_images: int) -> int:
    mask = getattr(features, "token_mask", None)
    if mask is not None:
        return int(mask.sum())
    return sum(len(image) for image in features.pooler_output) if features.pooler_output is not None else num_images


def _timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of a call and its result: CPU time of this process, or of a GPU the time until it is done."""
    if device.type == "cpu":
        start = time.process_time()
        result = function()
        return time.process_time() - start, result
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def _scores(models: Sequence[CostedModel], reports: Sequence[str | os.PathLike]) -> dict[str, dict[str, Any]]:
    """By label, the scores of reports that name the model's path."""
    found: dict[str, dict[str, Any]] = {model.label: {} for model in models}
    for file in _report_files(reports):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            metric = (report.get("measured_by") or [{"name": "accuracy", "label": "right", "scale": 100}])[0]
            score = {
                "label": f"{report['task']}, {metric['label']}",
                "value": metric["scale"] * report[metric["name"]],
                "interval": [metric["scale"] * end for end in report["interval"] or []] or None,
            }
            name = str(report["model"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is no report of vistok evaluate, or a damaged one: {error!r}.") from error
        owners = [model for model in models if _same(model.path, name)]
        if not owners:
            logger.warning(f"{file} is of {name}, which is none of the models: it is left out.")
        for owner in owners:
            found[owner.label][score["label"]] = score
    return found


def _same(path: str, name: str) -> bool:
    return path == name or (
        Path(path).exists() and Path(name).exists() and Path(path).resolve() == Path(name).resolve()
    )


def _report_files(reports: Sequence[str | os.PathLike]) -> list[Path]:
    files: list[Path] = []
    for report in map(Path, reports):
        if report.is_dir():
            of_folder = [file for file in sorted(report.glob("*.json")) if file.stem != "summary"]
            if not of_folder:
                raise FileNotFoundError(f"{report} holds no report: expected JSON files that vistok evaluate wrote.")
            files += of_folder
        elif report.is_file():
            files.append(report)
        else:
            raise FileNotFoundError(f"There is no report {report}: name a folder or file that vistok evaluate wrote.")
    return files


def costs_markdown(results: Mapping[str, Any]) -> str:
    """
    Costs as a page: a row for each model, with ratios to the first.

    Args:
        results (`dict`): from [`measure_costs`]; may have `command`.
    """
    rows = results["rows"]
    tasks = list(dict.fromkeys(label for row in rows for label in row["scores"]))
    header = ["model", *COLUMNS.values(), *tasks]
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for row in rows:
        cells = [row["label"], *(_cell(row, rows[0], name) for name in COLUMNS)]
        for task in tasks:
            score = row["scores"].get(task)
            ends = "–".join(f"{end:.1f}" for end in (score or {}).get("interval") or [])
            cells.append("–" if score is None else f"{score['value']:.1f}{f' ({ends})' if ends else ''}")
        lines.append(f"| {' | '.join(cells)} |")
    timed = "CPU time" if results["device"].startswith("cpu") else "time"
    parts = [
        "# What visual tokens cost",
        f"{results['num_images']:,} images, batches of {results['batch_size']}, {results['rounds']} rounds, "
        f"{results['dtype']} on {results['device']} ({timed}, {results['threads']} threads); ratios to "
        f"{rows[0]['label']} in brackets.",
        "\n".join(lines),
        NOTES,
    ]
    if results.get("command"):
        parts.append(f"Written by `{results['command']}`.")
    return "\n\n".join(parts) + "\n"


def _cell(row: Mapping[str, Any], first: Mapping[str, Any], name: str) -> str:
    value = row[name]
    shown = f"{value:.1f}" if value >= 10 or name == "tokens" else f"{value:.2f}"
    return shown if row is first or not first[name] else f"{shown} ({value / first[name]:.2f})"


def write_costs(results: Mapping[str, Any], folder: str | os.PathLike) -> list[Path]:
    """
    Writes costs as `token_costs.json` and `.md`.

    Args:
        results (`dict`): from [`measure_costs`].
        folder (`str`): made if need be.

    Returns:
        `list[Path]`: the files.
    """
    files = [Path(folder) / f"{FILE_NAME}{ending}" for ending in (".json", ".md")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(files[0], json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    write_text_atomically(files[1], costs_markdown(results))
    return files


__all__ = ["CostedModel", "costs_markdown", "measure_costs", "write_costs"]
