"""Tiny base models in folders, as users have them, the GVT composed of them, and trainers for it."""

import copy

import pytest
import torch

from tests.tiny import NUM_LATENTS, save_base_models
from vistok import GVTForConditionalGeneration, GVTProcessor, VisualLanguageConfig, VisualLanguageTrainer

RESAMPLER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 10}
RESAMPLER |= {"intermediate_size": 40, "num_latents": NUM_LATENTS}


@pytest.fixture(scope="session")
def base_models(tmp_path_factory) -> tuple[str, str]:
    """Folders of a tiny vision tower and a tiny language model."""
    return save_base_models(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def processor(base_models) -> GVTProcessor:
    return GVTProcessor.from_vision_text_pretrained(*base_models, num_image_tokens=NUM_LATENTS)


@pytest.fixture(scope="session")
def composed(base_models) -> GVTForConditionalGeneration:
    torch.manual_seed(0)
    return GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **RESAMPLER)


@pytest.fixture
def model(composed) -> GVTForConditionalGeneration:
    """A new GVT of these base models, the same in every test."""
    return copy.deepcopy(composed)


@pytest.fixture
def trainer_for(processor, tmp_path):
    """Makes a trainer of a model: quiet, without checkpoints, two examples a step."""

    def make(model, train=None, evaluate=None, **options) -> VisualLanguageTrainer:
        settings = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 3,
            "learning_rate": 1e-2,
            "max_steps": 2,
        }
        trainer_options = {
            name: options.pop(name) for name in ("data_collator", "callbacks", "compute_metrics") if name in options
        }
        return VisualLanguageTrainer(
            model=model,
            args=VisualLanguageConfig(**{**settings, **options}),
            train_dataset=train,
            eval_dataset=evaluate,
            processing_class=processor,
            **trainer_options,
        )

    return make
