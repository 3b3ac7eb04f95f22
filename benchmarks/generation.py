"""
Generation on one machine: a growing key-value cache, a static one, and a static one with the decoding step compiled.

    vistok fetch
    python -m benchmarks.generation

GVT (32 visual tokens) and VT-LMM (64, at 112 pixels) around DINOv2-small and SmolLM2-135M; what would be trained
between them has random weights, which makes them write nonsense as fast as sense. Each describes one image in 32 new
tokens, greedily, through `generate`: as it is (`dynamic`), with `cache_implementation="static"`, and with a
`CompileConfig` too, which on a CPU transformers leaves out unless it is told otherwise.

Prefill is the time to the first token, tokens per second are those after it, both CPU time on one thread, medians over
rounds that take turns; the ratio is to the growing cache. Compiling is the wall time of the first run above that of a
later one. `same` counts the tokens up to the first that differs from what the growing cache wrote.
"""

import statistics
import time
from typing import Any

import torch
from PIL import Image
from transformers import CompileConfig

from benchmarks._measure import GenerationSeconds, median_ratio, parse_arguments, report
from vistok import GVTForConditionalGeneration, GVTProcessor, VTLMMForCausalLM, VTLMMProcessor

NUM_NEW_TOKENS = 32
QUESTION = "Describe the image in detail."
SYSTEMS = {
    "GVT": (GVTForConditionalGeneration, GVTProcessor, {}),
    "VT-LMM": (VTLMMForCausalLM, VTLMMProcessor, {"image_size": 112}),
}


class Way:
    """One way to generate, and what each run of it cost."""

    def __init__(self, model: Any, inputs: Any, num_new_tokens: int, options: dict[str, Any]):
        self.model, self.inputs, self.num_new_tokens, self.options = model, inputs, num_new_tokens, options
        self.seconds = GenerationSeconds()
        self.compile_seconds: float | None = None

    @torch.no_grad()
    def run(self) -> None:
        with self.seconds.run() as criteria:
            sequences = self.model.generate(
                **self.inputs,
                do_sample=False,
                min_new_tokens=self.num_new_tokens,
                max_new_tokens=self.num_new_tokens,
                stopping_criteria=criteria,
                **self.options,
            )
        self.written = sequences[0, self.inputs["input_ids"].shape[1] :].tolist()

    def warm_up(self) -> None:
        """Runs once; twice where the first run compiles, and notes how much longer that takes."""
        walls = []
        for _ in range(2 if "compile_config" in self.options else 1):
            start = time.perf_counter()
            self.run()
            walls.append(time.perf_counter() - start)
        if len(walls) == 2:
            self.compile_seconds = walls[0] - walls[1]
        self.seconds.forget()


def ways_of(model: Any, inputs: Any, num_new_tokens: int, backend: str) -> dict[str, Way]:
    # Without a graph of a GPU to replay there is nothing that "reduce-overhead", the default, could reduce.
    compiled = CompileConfig(mode="default", backend=backend)
    compiled._compile_all_devices = True
    static = {"cache_implementation": "static"}
    options = {
        "dynamic": {},
        "static": {**static, "disable_compile": True},
        "static, compiled": {**static, "compile_config": compiled},
    }
    return {name: Way(model, inputs, num_new_tokens, chosen) for name, chosen in options.items()}


def leading(one: list[int], other: list[int]) -> int:
    """How many tokens are the same up to the first that differs."""
    return next((number for number, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def compare(system: str, parts: tuple[str, str], dtype: torch.dtype, rounds: int, num_new_tokens: int, backend: str):
    """Rows of the three ways of one system."""
    model_class, processor_class, sizes = SYSTEMS[system]
    torch.manual_seed(0)
    model = model_class.from_vision_text_pretrained(*parts, dtype=dtype, **sizes).eval()
    processor = processor_class.from_vision_text_pretrained(*parts, **sizes)
    image = Image.new("RGB", (224, 224), (200, 120, 40))
    inputs = processor(images=[image], text=f"{processor.image_token}\n{QUESTION}", return_tensors="pt")
    ways = ways_of(model, inputs, num_new_tokens, backend)
    for way in ways.values():
        way.warm_up()
    for _ in range(rounds):
        for way in ways.values():
            way.run()
    torch.compiler.reset()
    dynamic = ways["dynamic"]
    return [
        {
            "model": system,
            "dtype": str(dtype).removeprefix("torch."),
            "way": name,
            "prefill, ms": 1e3 * statistics.median(way.seconds.prefill),
            "tokens/s": 1 / statistics.median(way.seconds.decode),
            "ratio": median_ratio(dynamic.seconds.decode, way.seconds.decode),
            "same": f"{leading(way.written, dynamic.written)} of {num_new_tokens}",
            "compiling, s": "–" if way.compile_seconds is None else f"{way.compile_seconds:.0f}",
        }
        for name, way in ways.items()
    ]


def main() -> None:
    options = parse_arguments(
        __doc__, rounds=3, vision={"default": "vistok:dinov2-small", "help": "name, folder or Hub id"},
        text={"default": "vistok:smollm2-135m", "help": "name, folder or Hub id"},
        backend={"default": "inductor", "help": "of torch.compile (default inductor, which needs a C++ compiler)"},
    )  # fmt: skip
    rounds, num_new_tokens = (1, 5) if options.quick else (options.rounds, NUM_NEW_TOKENS)
    parts = (options.vision, options.text)
    dtypes = (torch.float32,) if options.quick else (torch.float32, torch.bfloat16)
    rows = []
    for system in SYSTEMS:
        for dtype in dtypes:
            rows += compare(system, parts, dtype, rounds, num_new_tokens, options.backend)
    report(rows, options.csv)


if __name__ == "__main__":
    main()
