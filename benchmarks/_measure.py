"""What the benchmarks share: interleaved runs on one thread, medians of ratios, peak memory, tables."""

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import StoppingCriteria, StoppingCriteriaList


def parse_arguments(description: str | None, rounds: int, **options: Mapping[str, Any]) -> argparse.Namespace:
    """
    The command line of a benchmark. Also sets torch to one thread: with two, a wall time says how long threads waited
    for one another as soon as anything else runs, and a CPU time counts the waiting.

    Args:
        description (`str`): docstring of the script.
        rounds (`int`): default of `--rounds`.
        options (`dict`): further options and their arguments for `add_argument`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often each runs, in turn (default {rounds})")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the script runs")
    parser.add_argument("--csv", help="also write the rows to this file")
    for name, arguments in options.items():
        parser.add_argument(f"--{name}", **arguments)
    torch.set_num_threads(1)
    return parser.parse_args()


def interleaved_seconds(
    functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """
    Runs the functions in turn, round after round, so that whatever slows the machine down slows all of them down.

    Args:
        functions (`dict[str, Callable]`): what to compare.
        rounds (`int`): how many runs of each count.
        warm_up (`int`): how many rounds come before those.

    Returns:
        `dict[str, list[float]]`: CPU seconds of this process, a number for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if number >= warm_up:
                seconds[name].append(time.process_time() - start)
    return seconds


class GenerationSeconds:
    """What runs of `generate` cost, a number for each: CPU seconds up to the first token, and for each one after."""

    def __init__(self) -> None:
        self.prefill: list[float] = []
        self.decode: list[float] = []

    @contextmanager
    def run(self) -> Iterator[StoppingCriteriaList]:
        """Times what happens within, up to and with a `generate` that is given this as its `stopping_criteria`."""
        clock = _TokenClock()
        start = time.process_time()
        yield StoppingCriteriaList([clock])
        self.prefill.append(clock.times[0] - start)
        self.decode.append((clock.times[-1] - clock.times[0]) / (len(clock.times) - 1))

    def forget(self) -> None:
        """Leaves out the runs up to here, which warmed up."""
        self.prefill, self.decode = [], []


class _TokenClock(StoppingCriteria):
    """Notes when each token was there, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.process_time())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most memory that torch held on the CPU during a call, above what it held before, by torch's profiler."""
    with _without_profiler_messages(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _without_profiler_messages() -> Iterator[None]:
    """Its C++ code writes to standard error whenever it starts and stops."""
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def report(rows: Sequence[Mapping[str, Any]], csv_path: str | None = None) -> None:
    """
    Prints rows as a Markdown table.

    Args:
        rows (`list[dict]`): all with the same keys.
        csv_path (`str`, *optional*): also writes them there.
    """
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_text(row[name]) for name in names] for row in rows)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if csv_path is not None:
        os.makedirs(os.path.dirname(csv_path) or ".", exist_ok=True)
        with open(csv_path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _text(row[name]) for name in names} for row in rows)


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
