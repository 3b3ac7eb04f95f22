"""
What `import vistok` costs beside transformers and its own classes of the same kind.

    python -m benchmarks.import_time

`import vistok` registers its models with the Auto classes, so it loads them and what they stand on. The peer imports
torch, transformers and the classes of LLaVA. Each run is a fresh interpreter; CPU time of its imports, taking turns
with the others. `--profile` lists what `import vistok` adds to the peer.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks._measure import median_ratio, parse_arguments, report

PEER = (
    "import torch, transformers; from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor"
)
IMPORTS = {"torch": "import torch", "LLaVA": PEER, "vistok": "import vistok"}
TIMED = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


def run_python(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )


def import_seconds(statement: str) -> float:
    return float(run_python(TIMED.format(statement)).stdout)


def profile_imports() -> None:
    """Prints the modules that `import vistok` loads behind the peer's, in microseconds, slowest first."""
    log = run_python(
        f"{PEER}; import sys; print('behind the peer', file=sys.stderr); import vistok", "-X", "importtime"
    )
    lines = log.stderr.partition("behind the peer")[2].strip().splitlines()
    slowest = sorted(lines, key=lambda line: int(line.split("|")[1]), reverse=True)
    print("\n".join(slowest[:30]))


def main() -> None:
    options = parse_arguments(
        __doc__, rounds=9, profile={"action": argparse.BooleanOptionalAction, "default": False, "help": "see above"}
    )
    if options.profile:
        profile_imports()
        return
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(1 if options.quick else 1 + options.rounds):
        for name, statement in IMPORTS.items():
            measured = import_seconds(statement)
            if number > 0 or options.quick:  # the first round may read files that are not in memory yet
                seconds[name].append(measured)
    rows = [
        {
            "import": name,
            "seconds": statistics.median(measured),
            "ratio to LLaVA": median_ratio(measured, seconds["LLaVA"]),
        }
        for name, measured in seconds.items()
    ]
    report(rows, options.csv)


if __name__ == "__main__":
    main()
