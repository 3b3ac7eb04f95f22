"""What it costs a language model to read an image: visual tokens, floating-point operations, time and cache."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

WORD = " the"
IGNORED = -100


def count_flops(function: Callable[[], Any]) -> int:
    """
    Floating-point operations of a call: two for each multiplication and addition of matrix products, convolutions and
    attention, forward and backward, whatever processor they run on. What is no such product (norms, activations,
    sorting) is not counted, as is usual.

    Args:
        function (`Callable`): called once.

    Returns:
        `int`: the number of operations.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def measure_costs(
    models: Mapping[str, tuple[Any, Any]],
    images: Sequence[Image.Image],
    num_text_tokens: int = 32,
    rounds: int = 3,
    progress_bar: bool = False,
    with_step: bool = False,
) -> dict[str, dict[str, float]]:
    """
    Measures what models of vistok pay for the same images, each alone behind the same words, in turn: whatever slows
    the machine down slows all of them down. The vision tower runs before and is counted apart.

    Args:
        models (`dict`): of each name a composed model, in evaluation mode, and its processor.
        images (`list[PIL.Image.Image]`): at least one.
        num_text_tokens (`int`, *optional*, defaults to 32): words of the prompt, of about a token each.
        rounds (`int`, *optional*, defaults to 3): how often each image is read; times are medians.
        progress_bar (`bool`, *optional*, defaults to `False`): whether to show one.
        with_step (`bool`, *optional*, defaults to `False`): whether to measure a step of training too.

    Returns:
        `dict[str, dict[str, float]]`: of each model, on average over the images: `tokens` per image, their standard
        deviation `tokens_sd` and extremes `tokens_min` and `tokens_max`; `tower_gflop`, `tokenizer_gflop` (visual
        tokenizer and projection) and `prefill_gflop` (language model); `tokenizer_ms`, `prefill_ms` and, if wanted,
        `step_ms`, forward and backward of the language model behind visual tokens that are there already, with all of
        its weights trained: CPU time of this process, or time of a GPU; `kv_kib`, size of the key-value cache.

    Raises:
        ValueError: if there are no images or models, a number is below 1, or a model is not composed.
    """
    for name, number in (("num_text_tokens", num_text_tokens), ("rounds", rounds), ("images", len(images))):
        if number < 1:
            raise ValueError(f"{name}: {number} given, costs need at least 1.")
    if not models:
        raise ValueError("There are no models whose costs could be measured: give at least one.")
    readers = {name: _Reader(*parts, num_text_tokens, with_step) for name, parts in models.items()}
    with _frozen([model for model, _ in models.values()]):
        for image in logging.tqdm(images, desc="Measuring costs", disable=not progress_bar):
            for reader in readers.values():
                reader.show(image)
            for _ in range(1 + rounds):  # the first is a warm-up
                for reader in readers.values():
                    reader.read()
            for reader in readers.values():
                reader.note_times()
    return {name: reader.found() for name, reader in readers.items()}


@contextlib.contextmanager
def _frozen(models: Sequence[torch.nn.Module]) -> Iterator[None]:
    """What counts operations follows gradients wherever a parameter may have one, and fails without any."""
    trained = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Reader:
    """A model that reads one image after the other, and what it cost."""

    def __init__(self, model: Any, processor: Any, num_text_tokens: int, with_step: bool):
        if not hasattr(getattr(model, "model", None), "visual_tokenizer"):
            raise ValueError(f"{type(model).__name__} is no composed model of vistok, whose parts are measured apart.")
        self._model, self._processor = model, processor
        self._words = WORD * num_text_tokens
        self._timed = {"tokenizer_ms": self._encode, "prefill_ms": self._prefill}
        if with_step:
            self._timed["step_ms"] = self._step
        self._per_image: dict[str, list[float]] = {}
        self._times: dict[str, list[float]] = {}

    @torch.no_grad()
    def show(self, image: Image.Image) -> None:
        model = self._model
        text = f"{self._processor.image_token}{self._words}"
        inputs = self._processor(images=[image], text=[text], return_tensors="pt").to(model.device)
        pixel_values = inputs.pop("pixel_values")
        kept: list[torch.Tensor] = []
        tower = count_flops(lambda: kept.append(model.model.get_vision_features(pixel_values).patch_features))
        self._features, self._inputs = kept[0], dict(inputs)
        tokenizer = count_flops(self._encode)
        prefill = count_flops(self._prefill)
        real = self._encoded.real_tokens()
        cache = self._cache
        found = {
            "tokens": float(len(real[0])),
            "tower_gflop": tower / 1e9,
            "tokenizer_gflop": tokenizer / 1e9,
            "prefill_gflop": prefill / 1e9,
            "kv_kib": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 1024,
        }
        for name, value in found.items():
            self._per_image.setdefault(name, []).append(value)
        self._rounds: dict[str, list[float]] = {name: [] for name in self._timed}

    def _encode(self) -> None:
        self._encoded = self._model.get_image_features(vision_features=self._features)

    def _prefill(self) -> None:
        outputs = self._model(
            **self._inputs, mm_encoder_outputs={"image": self._encoded}, use_cache=True, logits_to_keep=1
        )
        self._cache = outputs.past_key_values

    def _step(self) -> None:
        labels = self._inputs["input_ids"].masked_fill(self._inputs["attention_mask"] == 0, IGNORED)
        labels = labels.masked_fill(labels == self._processor.image_token_id, IGNORED)
        encoded = {"image": self._encoded}
        with torch.enable_grad():
            self._model(**self._inputs, mm_encoder_outputs=encoded, labels=labels, skip_logits=True).loss.backward()
        self._model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def read(self) -> None:
        for name, function in self._timed.items():
            with self._language_model_trained() if name == "step_ms" else contextlib.nullcontext():
                self._rounds[name].append(1e3 * _seconds(function, self._model.device))

    @contextlib.contextmanager
    def _language_model_trained(self) -> Iterator[None]:
        for parameter in self._model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        for part in (self._model.model.vision_tower, self._model.model.visual_tokenizer):
            part.requires_grad_(False)
        try:
            yield
        finally:
            self._model.requires_grad_(False)

    def note_times(self) -> None:
        for name, (_, *times) in self._rounds.items():
            self._times.setdefault(name, []).append(statistics.median(times))

    def found(self) -> dict[str, float]:
        tokens = self._per_image["tokens"]
        return {
            "tokens": statistics.mean(tokens),
            "tokens_sd": statistics.pstdev(tokens),
            "tokens_min": min(tokens),
            "tokens_max": max(tokens),
            **{name: statistics.mean(values) for name, values in self._per_image.items() if name != "tokens"},
            **{name: statistics.mean(values) for name, values in self._times.items()},
        }


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Of a call: CPU time of this process, or of a GPU the time until it is done."""
    if device.type != "cuda":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


__all__ = ["count_flops", "measure_costs"]
