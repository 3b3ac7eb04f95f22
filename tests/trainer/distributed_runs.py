"""
Every trainer of vistok with every strategy, beside one process with the same batches.

    python -m tests.trainer.distributed_runs                                # prints the tables
    python -m tests.trainer.distributed_runs --page docs/distributed.md     # writes them into the page
    python -m tests.trainer.distributed_runs FOLDER                         # keeps what was trained, or reads it again

The tables: the largest difference of a weight that was saved in the end, of a loss that was logged, and of a gradient
norm, as a share of it; and of a weight after a resumed training. test_distributed.py reads what they are made of. One
process imports everything and forks all others, two at a time.
"""

import argparse
import gc
import importlib
import itertools
import json
import os
import platform
import re
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import DistributedType, PartialState
from accelerate.utils import is_deepspeed_available
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from tests.trainer.distributed_trainers import SETTINGS, TRAINERS, prepare
from vistok.configuration.shipped import shipped_path

ALONE = "1 process"
STRATEGIES = {"DDP": "ddp", "FSDP2": "fsdp2", "ZeRO-2": "zero2", "ZeRO-3": "zero3"}
"""By name, the configuration of accelerate among the recipes."""

RESUMED = ("VisualModelingTrainer, visual modeling", "SetokimTrainer, instruction")
"""The second has weights that are neither trained nor of base models: a bank of tokens."""
_OTHER_NUMBERS = {"whole": (2, None), "fewer": (1, "whole/checkpoint-2"), "more": (2, "fewer/checkpoint-3")}
SESSIONS: dict[str, dict[str, tuple[int, str | None]]] = {
    "FSDP2": {**_OTHER_NUMBERS},
    "ZeRO-2": {**_OTHER_NUMBERS, "on": (2, "whole/checkpoint-2")},
    "ZeRO-3": {**_OTHER_NUMBERS, "on": (2, "whole/checkpoint-2")},
}
"""Of trainings with divided checkpoints: by name, on how many processes, and from which checkpoint."""

IMPORTED_LATER = ("diffusers.models.unets.unet_2d_condition", "diffusers.schedulers", "scipy.stats", "peft")
"""What trainers import where they use it: here it is imported once, not in each process."""

DIFFERENT = ("_seconds", "runtime", "per_second")
"""Ends of the names of what two equal trainings log otherwise."""

FIGURES = re.compile(r"(?<=<!-- figures -->\n).*(?=<!-- end of figures -->)", re.DOTALL)
"""The part of a page that is written anew."""

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "peft", "bitsandbytes", "diffusers", "datasets")


def run_all(folder: Path) -> None:
    """Trains all; what came out of each is in `<folder>/<strategy>/<trainer>`."""
    for module in IMPORTED_LATER:
        importlib.import_module(module)
    prepare(folder)
    fork(1, None, train_all, folder, ALONE)
    for strategy, name in STRATEGIES.items():
        if runs_here(strategy):
            fork(2, name, train_all, folder, strategy)
    resume_all(folder)
    present = [name for name in PACKAGES if name != "deepspeed" or is_deepspeed_available()]
    versions = {"Python": platform.python_version(), **{name: version(name) for name in present}}
    (folder / "versions.json").write_text(json.dumps(versions))


def resume_all(folder: Path) -> None:
    """The trainings of [`SESSIONS`], in `<folder>/resumed/<trainer>/<strategy>/<session>`."""
    for strategy in filter(runs_here, SESSIONS):
        for session, (world, _) in SESSIONS[strategy].items():
            fork(world, STRATEGIES[strategy], train_on, folder, strategy, session)


def runs_here(strategy: str) -> bool:
    return not strategy.startswith("ZeRO") or is_deepspeed_available()


def fork(world: int, strategy: str | None, function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function in so many processes of a group, as `accelerate launch` starts them, and waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            os._exit(_exit_code(world, rank, port, strategy, function, arguments))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"{strategy or ALONE} ended with {codes}.")


def _exit_code(world: int, rank: int, port: str, strategy: str | None, function, arguments) -> int:
    try:
        torch.set_num_threads(1)  # makes the pool of threads anew, before threads of this process would all at once
        if strategy is not None:
            join(strategy, rank, world, port)
        function(*arguments)
        gc.collect()
    except BaseException:  # whatever it is, nothing of the parent may go on in this process
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def join(strategy: str, rank: int, world: int, port: str) -> None:
    """
    Makes this process one of a group: sets what `accelerate launch` would. Accelerate has FSDP and DeepSpeed on
    accelerators alone, while they run on CPUs too: there it takes a CPU for an accelerator.
    """
    config = shipped_path(f"recipes/accelerate/{strategy}.yaml")
    args, defaults, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(config), "--num_processes", "2", "train.py"])
    )
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        args.deepspeed_config_file = without_small_weights(shipped_path(args.deepspeed_config_file))
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ |= prepare_deepspeed_cmd_env(args)[1]
        # It would be compiled first, for minutes, and gloo is as right.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    else:
        os.environ |= prepare_multi_gpu_env(args)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if strategy == "ddp":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    accelerator = ("gloo", DistributedType.MULTI_GPU)
    PartialState._prepare_backend = lambda self, *args, **kwargs: accelerator  # type: ignore[method-assign]


def without_small_weights(settings: Path) -> str:
    """The settings of DeepSpeed, as a file, with weights divided that are so small that stage 3 would leave them."""
    config = json.loads(settings.read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = Path(tempfile.gettempdir(), f"{settings.stem}-{os.getpid()}.json")
    file.write_text(json.dumps(config))
    return str(file)


def train_all(folder: Path, strategy: str) -> None:
    """Trains with each trainer. One that is refused leaves the error."""
    options = {**SETTINGS, "use_cpu": strategy in (ALONE, "DDP"), "per_device_train_batch_size": 4}
    if strategy != ALONE:
        options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    for name, make in TRAINERS.items():
        place = folder / strategy / name
        unset_hf_deepspeed_config()  # of the training before: models are composed before there are arguments
        try:
            trainer = make(folder, **options, output_dir=str(place))
        except ValueError as error:
            write(place, {"refused": str(error)})
            continue
        # Of what is trained: a bank of tokens is filled, which moves it further than any step does.
        trained = {} if strategy != ALONE else {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        before = {name: parameter.detach().clone() for name, parameter in trained.items()}
        dtype = ", ".join(sorted({str(p.dtype)[6:] for p in trainer.model.parameters() if p.requires_grad}))
        trainer.train()
        now = dict(trainer.model.named_parameters()) if before else {}
        moved = max(((now[name] - value).abs().max().item() for name, value in before.items()), default=0.0)
        logged = trainer.state.log_history[: SETTINGS["max_steps"]]
        metrics = trainer.evaluate()
        trainer.save_final(place)
        if trainer.is_world_process_zero():
            write(place, {"logged": logged, "metrics": metrics, "moved": moved, "dtype": dtype})
        del trainer, trained, before, now
        gc.collect()


def train_on(folder: Path, strategy: str, session: str) -> None:
    """Trains four steps, or what is left of them from a checkpoint; logs at the end."""
    world, start = SESSIONS[strategy][session]
    for name in RESUMED:
        place = folder / "resumed" / name / strategy
        options = {"output_dir": str(place / session), "save_strategy": "steps", "save_steps": 1, "logging_steps": 4}
        options |= {"optim": "adamw_torch", "max_steps": 4, "learning_rate": 0.01, "weight_decay": 0.3}
        options |= {"adam_epsilon": 1e-3}  # Adam makes steps of the rounding of gradients that are next to 0
        options |= {"lr_scheduler_type": "cosine", "per_device_train_batch_size": 4 // world, "use_cpu": False}
        unset_hf_deepspeed_config()  # of the training before
        trainer = TRAINERS[name](folder, **{**SETTINGS, **options})
        trainer.train(None if start is None else str(place / start))
        trainer.save_final(place / session)
        if trainer.is_world_process_zero():
            write(place / session, {"logged": trainer.state.log_history[:1]})
        del trainer
        gc.collect()


def write(place: Path, values: dict[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "outcome.json").write_text(json.dumps(values, default=float))


def read(folder: Path, strategy: str, trainer: str) -> dict[str, Any]:
    """What [`train_all`] wrote: `logged`, `metrics`, `moved` and `dtype`, or `refused`."""
    return json.loads((folder / strategy / trainer / "outcome.json").read_text())


def differences(folder: Path, strategy: str, trainer: str) -> dict[str, float]:
    """How far a training is from that of one process, at most."""
    pairs = list(zip(*(read(folder, one, trainer)["logged"] for one in (ALONE, strategy)), strict=True))
    norms = [(a["grad_norm"], b["grad_norm"]) for a, b in pairs]
    return {
        "weight": weight_difference(folder / ALONE / trainer, folder / strategy / trainer),
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "gradient": max(abs(a - b) / a for a, b in norms),
    }


def weight_difference(first: Path, second: Path) -> float:
    """The largest, of all weights in two folders that hold the same."""
    weights = [load_file(next(place.glob("*.safetensors"))) for place in (first, second)]
    if weights[0].keys() != weights[1].keys():
        raise ValueError(f"{first} and {second} hold other weights: {weights[0].keys() ^ weights[1].keys()}.")
    return max((weights[0][name].double() - weights[1][name].double()).abs().max().item() for name in weights[0])


def report(folder: Path) -> str:
    """All tables, with the versions that they were made with, in Markdown."""
    trained = {
        (trainer, name): read(folder, name, trainer) for name in filter(runs_here, STRATEGIES) for trainer in TRAINERS
    }
    refused = list(dict.fromkeys(found["refused"] for found in trained.values() if "refused" in found))
    weights, steps = [], []
    for trainer in TRAINERS:
        alone = read(folder, ALONE, trainer)
        weights.append([trainer, alone["dtype"], f"{alone['moved']:.0e}"])
        steps.append([trainer])
        for strategy in STRATEGIES:
            found = trained.get((trainer, strategy))
            if found is None or "refused" in found:
                cells = (
                    ["not installed"] * 2
                    if found is None
                    else [f"refused ({1 + refused.index(found['refused'])})"] * 2
                )
            else:
                far = differences(folder, strategy, trainer)
                cells = [shown(far["weight"]), f"{shown(far['loss'])}, {shown(far['gradient'])}"]
            weights[-1].append(cells[0])
            steps[-1].append(cells[1])
    versions = json.loads((folder / "versions.json").read_text())
    parts = [
        f"Made with {', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "Largest difference of a weight from that of 1 process, after two steps:",
        in_rows(["trainer", "trained in", "1 process moved by", *STRATEGIES], weights),
        "\n".join(f"- ({number}) {reason}" for number, reason in enumerate(refused, 1)),
        "The same runs: largest difference of a logged loss, and of a gradient norm as a share of it:",
        in_rows(["trainer", *STRATEGIES], steps),
        "Resumed from a divided checkpoint, in four steps, beside the training that was not interrupted:",
        in_rows(["trainer", "strategy", "processes", "largest difference of a weight"], resumed(folder)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def resumed(folder: Path) -> list[list[str]]:
    """By trainer and strategy: the numbers of processes one after the other, and how far weights are in the end."""
    rows = []
    for name, strategy in itertools.product(RESUMED, filter(runs_here, SESSIONS)):
        place, numbers = folder / "resumed" / name / strategy, {}
        for session, (world, start) in SESSIONS[strategy].items():
            numbers[session] = str(world) if start is None else f"{numbers[start.split('/')[0]]} → {world}"
            if start is not None:
                far = weight_difference(place / "whole", place / session)
                rows.append([name, strategy, numbers[session], shown(far)])
    return rows


def shown(difference: float) -> str:
    return f"{difference:.0e}" if difference else "0"


def in_rows(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def write_page(page: Path, figures: str) -> None:
    """Puts tables between the marks of a page, in place of those that are there."""
    text, found = FIGURES.subn(lambda _: figures, page.read_text(encoding="utf-8"))
    if found != 1:
        raise ValueError(f"{page} has no part between <!-- figures --> and <!-- end of figures -->, or several.")
    page.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Trains with every trainer and strategy, and compares.")
    parser.add_argument("folder", nargs="?", type=Path, help="keeps the trainings; finished ones there are read again")
    parser.add_argument(
        "--page", type=Path, help="a page of Markdown that takes the tables; without, they are printed"
    )
    args = parser.parse_args(arguments)
    if args.page and not is_deepspeed_available():
        parser.error("the page has columns of DeepSpeed: pip install 'vistok[deepspeed]' (nothing has to be compiled)")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "versions.json").is_file():
            run_all(folder)
        if args.page:
            write_page(args.page, report(folder))
        else:
            sys.stdout.write(report(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
