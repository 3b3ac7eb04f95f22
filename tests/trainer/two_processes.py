"""Run by test_two_processes.py in each of two processes: trains as it is told and writes what came out."""

import json
import sys
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from tests.processes import leave_process_group
from tests.trainer.conftest import RESAMPLER
from tests.trainer.tiny_training import losses, question, questions
from vistok import GVTForConditionalGeneration, GVTProcessor, VisualLanguageConfig, VisualLanguageTrainer
from vistok.trainer.data_examples import FEATURES


def train(base_models: list[str], folder: str, name: str, batch_size: int) -> VisualLanguageTrainer:
    """A short training of one kind; the batch is that of each process."""
    from datasets import Dataset

    torch.manual_seed(0)
    quantized = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
    fields = {**RESAMPLER, **(quantized if name == "qlora" else {})}
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **fields)
    processor = GVTProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=RESAMPLER["num_latents"])
    data, options = questions(16, per_image=2), {}
    if name == "stream":  # of rows of different length, some of them without images
        rows = [question(i, i if i % 3 else None) for i in range(16)]
        data = Dataset.from_list(rows, features=FEATURES).to_iterable_dataset(num_shards=1)
    elif name == "qlora":
        options = {"trainable": {"vision": "lora", "resampler": "full", "llm": "lora"}, "lora": {"r": 2}}
    else:
        options = {"conversations_per_row": 2, "cache_features": True, "feature_cache_dir": f"{folder}/features"}
    args = VisualLanguageConfig(
        output_dir=f"{folder}/{name}",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=3,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        **options,
    )
    trainer = VisualLanguageTrainer(model, args, data, questions(5), processing_class=processor)
    trainer.train()
    return trainer


def outcome(trainer: VisualLanguageTrainer) -> dict:
    metrics = trainer.evaluate()
    return {
        "losses": losses(trainer),
        "metrics": {name: metrics[f"eval_{name}"] for name in ("loss", "answer_accuracy")},
        "sums": {n: p.double().sum().item() for n, p in trainer.model.named_parameters() if p.requires_grad},
    }


def main(folder: str, *base_models: str) -> None:
    for name in ("groups", "stream", "qlora"):
        trainer = train(base_models, folder, name, batch_size=2)
        found = outcome(trainer)
        Path(folder, f"{name}-{trainer.args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
