"""
Every trainer of vistok with every strategy, beside one process with the same batches.

    python -m tests.trainer.distributed_runs

prints the table: the largest difference of a weight that was saved in the end, of a loss that was logged, and of a
gradient norm. test_distributed.py reads what it is made of. One process imports everything and forks all others.
"""

import gc
import importlib
import json
import os
import shutil
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

STRATEGIES = {"DDP": "ddp", "FSDP2": "fsdp2", "ZeRO-2": "zero2", "ZeRO-3": "zero3"}
"""By name, the configuration of accelerate among the recipes."""

ALONE = "1 process"
RESUMED = "VisualModelingTrainer, visual modeling"


def run_all(folder: Path) -> None:
    """Trains all; what came out of each is in `<folder>/<strategy>/<trainer>`."""
    prepare(folder)
    fork(1, None, train_all, folder, ALONE)
    for strategy, name in STRATEGIES.items():
        if runs_here(strategy):
            fork(2, name, train_all, folder, strategy)
    for name, world, start in (("whole", 2, None), ("fewer", 1, "whole/checkpoint-2"), ("more", 2, "fewer/checkpoint-3")):
        fork(world, "fsdp2", train_on, folder, name, world, start)


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
        if child:
            children.append(child)
            continue
        code = 1
        try:
            if strategy is not None:
                join(strategy, rank, world, port)
            function(*arguments)
            gc.collect()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"{strategy or ALONE} ended with {codes}.")


def join(strategy: str, rank: int, world: int, port: str) -> None:
    """
    Makes this process one of a group: sets what `accelerate launch` would. Accelerate has FSDP and DeepSpeed on
    accelerators alone, while torch has them on CPUs too: there it takes a CPU for an accelerator.
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
    split = {"per_device_train_batch_size": 4} if strategy == ALONE else {"per_device_train_batch_size": 1}
    split["gradient_accumulation_steps"] = 1 if strategy == ALONE else 2
    for name in os.environ.get("TRAINERS", "").split("|") if "TRAINERS" in os.environ else TRAINERS:
        place = folder / strategy / name
        options = {**SETTINGS, **split, "output_dir": str(place), "use_cpu": strategy in (ALONE, "DDP")}
        unset_hf_deepspeed_config()  # of the training before: models are composed before there are arguments
        try:
            trainer = TRAINERS[name](folder, **options)
        except ValueError as error:
            write(place / "outcome.json", {"refused": str(error)})
            continue
        import time; t0 = time.process_time()
        trainer.train(); t1 = time.process_time()
        metrics = trainer.evaluate(); t2 = time.process_time()
        trainer.save_final(place); print("TIME", strategy, name, round(t1 - t0, 2), round(t2-t1, 2), round(time.process_time()-t2, 2), flush=True)
        if trainer.is_world_process_zero():
            write(place / "outcome.json", outcome(trainer.state.log_history[: SETTINGS["max_steps"]], metrics))
        del trainer
        gc.collect()


def train_on(folder: Path, name: str, world: int, start: str | None) -> None:
    """Trains four steps, or what is left of them from a checkpoint of another number of processes; logs at the end."""
    place = folder / "resumed"
    options = {"output_dir": str(place / name), "use_cpu": False, "save_strategy": "steps", "save_steps": 1}
    options |= {"optim": "adamw_torch", "max_steps": 4, "logging_steps": 4, "learning_rate": 0.01}
    options |= {"per_device_train_batch_size": 4 // world}
    trainer = TRAINERS[RESUMED](folder, **{**SETTINGS, **options})
    trainer.train(None if start is None else str(place / start))
    trainer.save_final(place / name)
    if trainer.is_world_process_zero():
        write(place / name / "outcome.json", outcome(trainer.state.log_history[:1], {}))


def outcome(logged: list[dict[str, Any]], metrics: dict[str, float]) -> dict[str, Any]:
    timed = ("tokens_per_second", "runtime", "samples_per_second", "steps_per_second")
    return {
        "logged": [{name: value for name, value in entry.items() if name not in timed} for entry in logged],
        "metrics": {name: value for name, value in metrics.items() if not name.endswith(timed)},
    }


def write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, default=float))


def differences(folder: Path, strategy: str, trainer: str) -> dict[str, float]:
    """How far a training is from that of one process: weights that were saved, losses and gradient norms; at most."""
    alone, found = folder / ALONE / trainer, folder / strategy / trainer
    entries = [json.loads((place / "outcome.json").read_text())["logged"] for place in (alone, found)]
    pairs = list(zip(*entries, strict=True))
    return {
        "weight": weight_difference(alone, found),
        **{name: max(abs(a[name] - b[name]) for a, b in pairs) for name in ("loss", "grad_norm")},
    }


def weight_difference(first: Path, second: Path) -> float:
    weights = [load_file(next(place.glob("*.safetensors"))) for place in (first, second)]
    if weights[0].keys() != weights[1].keys():
        raise ValueError(f"{first} and {second} hold other weights: {weights[0].keys() ^ weights[1].keys()}.")
    return max((weights[0][name].double() - weights[1][name].double()).abs().max().item() for name in weights[0])


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        run_all(folder)
        lines = [["trainer", *STRATEGIES]]
        for trainer in TRAINERS:
            cells = []
            for strategy in STRATEGIES:
                place = folder / strategy / trainer / "outcome.json"
                if not runs_here(strategy):
                    cells.append("no deepspeed")
                elif "refused" in json.loads(place.read_text()):
                    cells.append("refused")
                else:
                    cells.append("{weight:.0e} {loss:.0e} {grad_norm:.0e}".format(**differences(folder, strategy, trainer)))
            lines.append([trainer, *cells])
        widths = [max(map(len, column)) for column in zip(*lines)]
        for line in lines:
            sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + "\n")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        run_all(Path(sys.argv[1]))
    else:
        main()
