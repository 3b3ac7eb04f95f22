"""A tiny Setokim of a saved SeTok and a saved language model, examples of every task, and trainers for it."""

import io
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features
from PIL import Image

from tests.tiny import (
    IMAGE_SIZE,
    image_bytes,
    livelier,
    save_base_models,
    tiny_dinov2_config,
    tiny_image_processor,
    tiny_llama_config,
)
from tests.tiny_setokim import tiny_setok_config
from tests.trainer.tiny_training import question
from vistok import (
    SeTokForPreTraining,
    SetokimForConditionalGeneration,
    SetokimProcessor,
    SetokimTrainer,
    SetokimTrainingConfig,
)
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.image_answers import TASK_FEATURES, image_answer, mask_image

ALL_FEATURES = Features({**FEATURES, **TASK_FEATURES})
TASKS = (None, "generate", "segment", "edit", None, "segment")
TEXTS = ("two dogs", "a red circle and two blue squares", "the cat", "a dog")


def save_setok_and_text(folder: Path, tied: bool = False) -> tuple[str, str]:
    """Folders of a SeTok with decoders, on images of 6 × 6 patches, and of a language model."""
    torch.manual_seed(0)
    tower = tiny_dinov2_config(patch_size=4)
    text_config = tiny_llama_config(vocab_size=340, tie_word_embeddings=tied)
    _, text = save_base_models(folder, vision_config=tower, text_config=text_config)
    setok = livelier(SeTokForPreTraining._from_config(tiny_setok_config(tower, draws=True)), 3.0)
    setok.save_pretrained(folder / "setok")
    tiny_image_processor().save_pretrained(folder / "setok")
    return str(folder / "setok"), text


def compose_setokim(base_models, **overrides) -> SetokimForConditionalGeneration:
    """Always the same model, in float64: what is compared differs by rounding alone."""
    torch.manual_seed(3)
    return SetokimForConditionalGeneration.from_vision_text_pretrained(*base_models, **overrides).double()


def setokim_processor(base_models) -> SetokimProcessor:
    return SetokimProcessor.from_vision_text_pretrained(*base_models, chat_template="chatml")


def box_mask(top: int = 4, left: int = 4, height: int = 12, width: int = 8, size: int = IMAGE_SIZE) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def boxed_image(seed: int, mask: np.ndarray) -> dict:
    """Random pixels with a box of one colour where the mask is."""
    pixels = np.random.default_rng(seed).integers(0, 120, (*mask.shape, 3), dtype=np.uint8)
    pixels[mask] = (250, 30 * (seed % 8), 200)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"path": None, "bytes": stream.getvalue()}


def task_example(index: int, task: str | None) -> dict:
    """A training example of a task, or a question about an image or, now and then, about none."""
    if task is None:
        return {**question(index, index if index % 4 else None), "task": None}
    images = [image_bytes(100 + index)]
    if task == "edit":
        images.append(image_bytes(200 + index))
    if task == "segment":
        mask = box_mask(left=4 * (index % 3))
        images = [boxed_image(index, mask), mask_image(mask, f"mask {index}")]
    return image_answer("planted", index, task, TEXTS[index % len(TEXTS)], images)


def task_examples(count: int, tasks=TASKS) -> Dataset:
    return Dataset.from_list([task_example(i, tasks[i % len(tasks)]) for i in range(count)], features=ALL_FEATURES)


def trainer_of(model, processor, folder, stage, train=None, evaluate=None, **options) -> SetokimTrainer:
    """A quiet trainer: two examples a step, plain steps down the gradient, no checkpoints and no pictures."""
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "max_steps": 2,
        "sample_steps": 0,
    }
    if stage == "instruction":
        settings["lora"] = {"r": 2, "init_lora_weights": False}
    args = SetokimTrainingConfig(**{**settings, "stage": stage, **options})
    return SetokimTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=evaluate, processing_class=processor
    )


def gradients_of_step(trainer) -> dict[str, torch.Tensor]:
    """All gradients of the first step of a training."""
    found: dict[str, torch.Tensor] = {}
    trainer.create_optimizer()
    step = trainer.optimizer.step

    def keeping(*args, **kwargs):
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                found.setdefault(name, parameter.grad.detach().clone())
        return step(*args, **kwargs)

    trainer.optimizer.step = keeping
    trainer.train()
    return found
