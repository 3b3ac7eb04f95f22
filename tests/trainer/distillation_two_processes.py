"""Run by test_two_processes_distillation.py in each of two processes: distils, and writes what came out."""

import json
import sys
from pathlib import Path

from tests.processes import leave_process_group
from tests.trainer.tiny_distillation import distillation_trainer, image_rows
from tests.trainer.tiny_training import losses

KINDS = {"plain": {}, "masked": {"mask_ratio": 0.4}}


def distil(folder: str, name: str, batch_size: int):
    """A short training of one kind, with augmentation; the batch is that of each process."""
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 5, "max_grad_norm": 0.0, "warmup_steps": 2}
    trainer = distillation_trainer(
        f"{folder}/{name}",
        image_rows(8),
        image_rows(5),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        scale_learning_rates=True,
        **{**options, "learning_rate": 12.8, "warmup_start_learning_rate": 1.0, "final_learning_rate": 1.0},
        **KINDS[name],
    )
    trainer.train()
    return trainer


def outcome(trainer) -> dict:
    metrics = trainer.evaluate()
    scores = ("loss", "cosine_similarity", "explained_variance")
    return {
        "losses": losses(trainer),
        "rates": [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry],
        "metrics": {name: metrics[f"eval_{name}"] for name in scores},
        "sums": {n: p.double().sum().item() for n, p in trainer.model.named_parameters()},
    }


def main(folder: str) -> None:
    for name in KINDS:
        trainer = distil(folder, name, batch_size=2)
        Path(folder, f"{name}-{trainer.args.process_index}.json").write_text(json.dumps(outcome(trainer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
