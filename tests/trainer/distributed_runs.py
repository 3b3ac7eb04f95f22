"""
Every trainer of vistok with every strategy, beside one process with the same batches.

    python -m tests.trainer.distributed_runs

prints the table: the largest difference of a weight that was saved in the end, of a loss that was logged, and of a
gradient norm, as a share of it. test_distributed.py reads what it is made of. One process imports everything and forks
all others, two at a time.
"""

import gc
import importlib
import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
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

RESUMED = "VisualModelingTrainer, visual modeling"
SESSIONS: dict[str, dict[str, tuple[int, str | None]]] = {
    "FSDP2": {"whole": (2, None), "fewer": (1, "whole/checkpoint-2"), "more": (2, "fewer/checkpoint-3")},
    "ZeRO-2": {"whole": (2, None), "on": (2, "whole/checkpoint-2")},
    "ZeRO-3": {"whole": (2, None), "on": (2, "whole/checkpoint-2")},
}
"""Of trainings with divided checkpoints: by name, on how many processes, and from which checkpoint."""

IMPORTED_LATER = ("diffusers.models.unets.unet_2d_condition", "diffusers.schedulers", "scipy.stats", "peft")
"""What trainers import where they use it: here it is imported once, not in each process."""

DIFFERENT = ("_seconds", "runtime", "per_second")
"""Ends of the names of what two equal trainings log otherwise."""


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


def resume_all(folder: Path) -> None:
    """The trainings of [`SESSIONS`], in `<folder>/resumed/<strategy>/<session>`."""
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
        before = {} if strategy != ALONE else {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        now = dict(trainer.model.named_parameters()) if before else {}
        moved = max(((now[name] - value).abs().max().item() for name, value in before.items()), default=0.0)
        logged = trainer.state.log_history[: SETTINGS["max_steps"]]
        metrics = trainer.evaluate()
        trainer.save_final(place)
        if trainer.is_world_process_zero():
            write(place, {"logged": logged, "metrics": metrics, "moved": moved})
        del trainer, before, now
        gc.collect()


def train_on(folder: Path, strategy: str, session: str) -> None:
    """Trains four steps, or what is left of them from a checkpoint; logs at the end."""
    place = folder / "resumed" / strategy
    world, start = SESSIONS[strategy][session]
    options = {"output_dir": str(place / session), "save_strategy": "steps", "save_steps": 1, "logging_steps": 4}
    options |= {"optim": "adamw_torch", "max_steps": 4, "learning_rate": 0.01}
    trainer = TRAINERS[RESUMED](
        folder, **{**SETTINGS, **options, "per_device_train_batch_size": 4 // world}, use_cpu=False
    )
    trainer.train(None if start is None else str(place / start))
    trainer.save_final(place / session)
    if trainer.is_world_process_zero():
        write(place / session, {"logged": trainer.state.log_history[:1]})


def write(place: Path, values: dict[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "outcome.json").write_text(json.dumps(values, default=float))


def read(folder: Path, strategy: str, trainer: str) -> dict[str, Any]:
    """What [`train_all`] wrote: `logged`, `metrics` and `moved`, or `refused`."""
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


def table(folder: Path) -> str:
    """The differences of all, in Markdown."""
    lines = [["trainer", "moved by", *STRATEGIES], ["---"] * (2 + len(STRATEGIES))]
    for trainer in TRAINERS:
        cells = []
        for strategy in STRATEGIES:
            if not runs_here(strategy):
                cells.append("not installed")
            elif "refused" in read(folder, strategy, trainer):
                cells.append("refused")
            else:
                found = differences(folder, strategy, trainer)
                cells.append(" ".join(f"{found[name]:.0e}" for name in ("weight", "loss", "gradient")))
        lines.append([trainer, f"{read(folder, ALONE, trainer)['moved']:.0e}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: list[str]) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if arguments:
        run_all(Path(arguments[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        run_all(Path(folder))
        sys.stdout.write(table(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
