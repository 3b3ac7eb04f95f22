"""Run by test_two_processes_setokim.py in each of two processes: a step, its gradients, and an evaluation."""

import sys
from pathlib import Path

import torch

from tests.processes import leave_process_group
from tests.trainer.tiny_setokim_training import (
    compose_setokim,
    gradients_of_step,
    setokim_processor,
    task_examples,
    trainer_of,
)

NAMES = ("loss", "loss_lm", "loss_visual", "loss_length", "loss_mask_bce", "loss_mask_dice")


def step(bases, folder: str, batch_size: int, accumulated: int = 1):
    """What a step logs, its gradients, and an evaluation: of rows of which one process has all that write images."""
    data = task_examples(12, ("generate", "edit", None, None, "segment", None))
    trainer = trainer_of(
        compose_setokim(bases), setokim_processor(bases), folder, "instruction", data, data.select(range(7)),
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated, max_steps=1,
        train_sampling_strategy="sequential", per_device_eval_batch_size=2, trainable={"mask_decoder": "full"},
    )  # fmt: skip
    gradients = gradients_of_step(trainer)
    metrics = {name: value for name, value in trainer.evaluate().items() if "loss" in name or "iou" in name}
    logged = {name: trainer.state.log_history[0][name] for name in NAMES}
    return {"logged": logged, "metrics": metrics, "gradients": gradients}, trainer


def main(folder: str, *bases: str) -> None:
    found, trainer = step(bases, f"{folder}/run", batch_size=2, accumulated=3)
    torch.save(found, Path(folder, f"{trainer.args.process_index}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
