"""The command `vistok push`."""

import argparse
import os
from pathlib import Path

SUMMARY = "publish a model on the Hugging Face Hub"
DESCRIPTION = """
Sends a model's folder to the Hub, in one commit: weights (safetensors alone), configs, processor, a checked card,
results that the Hub can read, and what trust_remote_code=True needs. Checkpoints, optimizer states, logs of trackers
and files of other kinds stay, and --dry-run says why. A credential in any text is refused. FOLDER stays as it is. An
upload that was interrupted goes on where it ended when the same is run again.

The code: by default two lines that load vistok's classes where vistok is installed. --self-contained publishes the
modules themselves, flattened: the model then loads where vistok is not installed.

The token is that of `hf auth login`, or of the environment variable HF_TOKEN; it is never shown. HF_ENDPOINT names
another server than the Hub.

example:
  vistok push runs/gvt-demo my-organisation/gvt-demo --dry-run
  vistok push runs/gvt-demo my-organisation/gvt-demo --full --self-contained --private
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of a trained or converted model")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="what it is called on the Hub")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--full", action="store_true", help="all weights, also where FOLDER holds only trained ones")
    weights.add_argument(
        "--adapter-only", action="store_true", help="only what was trained; its base models are named"
    )
    parser.add_argument("--self-contained", action="store_true", help="with the code, to load without vistok")
    parser.add_argument("--dry-run", action="store_true", help="show files and sizes, and send nothing")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="a new repository is seen by its owner alone; refused for one that everybody can read",
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if there is none (main)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--create-pr", action="store_true", help="propose the commit instead of making it")
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="TASK=OWNER/DATASET[:TASK]",
        help="data set of the Hub that an evaluation is of, for its results there; may be given several times",
    )


def run(options: argparse.Namespace) -> None:
    """`vistok push`"""
    from .hub_cards.push import send
    from .hub_cards.push_plan import Weights, planned_push

    weights: Weights = "full" if options.full else "adapter" if options.adapter_only else "as they are"
    benchmarks = dict(_benchmark(text) for text in options.benchmark)
    with planned_push(options.folder, options.repo_id, weights, options.self_contained, benchmarks) as plan:
        print(_table(plan))
        if options.dry_run:
            print("dry run: nothing was sent")
            return
        pushed = send(
            plan,
            private=options.private,
            revision=options.revision,
            message=options.message,
            create_pr=options.create_pr,
        )
    print(f"{pushed.url} (commit {pushed.commit[:8]})")


def _benchmark(text: str) -> tuple[str, str]:
    task, equals, benchmark = text.partition("=")
    if not (task and equals and benchmark):
        raise ValueError(f"--benchmark {text!r} names no data set, expected TASK=OWNER/DATASET.")
    return task, benchmark


def _table(plan) -> str:
    rows = [(file.path, _size(file.size)) for file in plan.files]
    width = max(len(name) for name, _ in rows)
    lines = [f"{plan.repo_id}: {len(rows)} files, {_size(plan.size)}"]
    lines += [f"  {name:<{width}}  {size:>9}" for name, size in rows]
    lines += [f"note: {note}" for note in plan.notes]
    groups: dict[str, list[str]] = {}
    for name, reason in plan.left_out.items():
        top = name.split(os.sep)[0].split("/")[0]
        groups.setdefault(reason, []).append(f"{top}/" if "/" in name else name)
    lines += [f"stays here ({reason}): {', '.join(dict.fromkeys(names))}" for reason, names in groups.items()]
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
