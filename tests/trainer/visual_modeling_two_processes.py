"""Run by test_two_processes_visual_modeling.py in each of two processes: a step of each stage, and its gradients."""

import sys
from pathlib import Path

import torch
from datasets import Dataset

from tests.processes import leave_process_group
from tests.trainer.tiny_training import question
from tests.trainer.tiny_visual_modeling import compose_vtlmm, trainer_of, vtlmm_processor
from vistok.trainer.data_examples import FEATURES

STAGES = ("alignment", "visual_tokens", "visual_modeling", "texts")


def step(base_models, folder: str, stage: str, batch_size: int, accumulated: int = 1):
    """What a step logs, its gradients, and an evaluation."""
    # Rows of different length, of which one process gets more images than the other, and one batch none.
    images = {3, 6, 7, 9} if stage != "texts" else set()
    data = Dataset.from_list([question(i, i if i in images else None) for i in range(12)], features=FEATURES)
    stage = "visual_modeling" if stage == "texts" else stage
    found: dict[str, torch.Tensor] = {}
    trainer = trainer_of(
        compose_vtlmm(base_models), vtlmm_processor(base_models), folder, stage, data, data.select(range(7)),
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated, max_steps=1,
        train_sampling_strategy="sequential", per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer.create_optimizer()
    plain_step = trainer.optimizer.step

    def keeping_step(*args, **kwargs):
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                found.setdefault(name, parameter.grad.detach().clone())
        return plain_step(*args, **kwargs)

    trainer.optimizer.step = keeping_step
    trainer.train()
    metrics = {name: value for name, value in trainer.evaluate().items() if "loss" in name or "visual" in name}
    names = ("loss", "loss_lm", "loss_vm")
    logged = {name: value for name, value in trainer.state.log_history[0].items() if name in names}
    return {"logged": logged, "metrics": metrics, "gradients": found}, trainer


def main(folder: str, *base_models: str) -> None:
    for stage in STAGES:
        found, trainer = step(base_models, f"{folder}/{stage}", stage, batch_size=2, accumulated=2)
        torch.save(found, Path(folder, f"{stage}-{trainer.args.process_index}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
