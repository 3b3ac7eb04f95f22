"""A tiny VT-LMM of saved base models, trainers for it, and both as fixtures."""

import copy

import pytest
import torch
from datasets import Dataset

from tests.tiny import IMAGE_SIZE, PATCH_SIZE, livelier
from tests.trainer.tiny_training import question
from vistok import VisualModelingConfig, VisualModelingTrainer, VTLMMForCausalLM, VTLMMProcessor
from vistok.trainer.data_examples import FEATURES

NUM_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
STAGES = ("alignment", "instruction", "visual_tokens", "visual_modeling")


def compose_vtlmm(base_models, **overrides) -> VTLMMForCausalLM:
    """Always the same model, in float64: what is compared differs by rounding alone."""
    torch.manual_seed(3)
    model = VTLMMForCausalLM.from_vision_text_pretrained(*base_models, **overrides)
    livelier(model.model.vm_head, 10.0)
    return model.double()


def vtlmm_processor(base_models) -> VTLMMProcessor:
    return VTLMMProcessor.from_vision_text_pretrained(
        *base_models, num_image_tokens=NUM_TOKENS, chat_template="chatml"
    )


def trainer_of(model, processor, folder, stage, train=None, evaluate=None, **options) -> VisualModelingTrainer:
    """A quiet trainer: two examples a step, plain steps down the gradient, and no checkpoints."""
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
    }
    args = VisualModelingConfig(**{**settings, "stage": stage, **options})
    return VisualModelingTrainer(
        model=model, args=args, train_dataset=train, eval_dataset=evaluate, processing_class=processor
    )


def mixed(count: int) -> Dataset:
    """Questions about images, every third about none; answers of one to many tokens."""
    return Dataset.from_list([question(i, i if i % 3 else None) for i in range(count)], features=FEATURES)


@pytest.fixture(scope="module")
def composed(base_models) -> VTLMMForCausalLM:
    return compose_vtlmm(base_models)


@pytest.fixture
def model(composed) -> VTLMMForCausalLM:
    """The same in every test."""
    return copy.deepcopy(composed)


@pytest.fixture(scope="module")
def processor(base_models) -> VTLMMProcessor:
    return vtlmm_processor(base_models)


@pytest.fixture
def trainer_for(processor, tmp_path):
    """Makes a trainer of a model and a stage, as [`trainer_of`] does."""
    return lambda model, stage, *data, **options: trainer_of(
        model, processor, tmp_path / "run", stage, *data, **options
    )
