"""What tests of feature distillation are made of: a tiny teacher, students, images and trainers."""

import torch
from datasets import Dataset

from tests.tiny import IMAGE_SIZE, image_bytes, livelier, tiny_dinov2_config, tiny_image_processor
from vistok import FeatureDistillationConfig, FeatureDistillationTrainer
from vistok.modeling.distillation_students import random_student
from vistok.modeling.vision_features import build_vision_tower
from vistok.trainer.data_examples import FEATURES

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def tiny_teacher(config=None):
    torch.manual_seed(0)
    return livelier(build_vision_tower(config or tiny_dinov2_config()))


def tiny_student(config=None, seed=1):
    return random_student(config or tiny_dinov2_config(), IMAGE_SIZE, seed)


def image_rows(count: int, per_image: int = 1) -> Dataset:
    """Training examples about images of random pixels, several about each."""
    rows = [
        {"id": f"q{i}", "source": "planted", "row": i, "images": [image_bytes(i // per_image)], "messages": []}
        for i in range(count)
    ]
    return Dataset.from_list(rows, features=FEATURES)


def distillation_trainer(folder, train=None, evaluate=None, student=None, teacher=None, **options):
    """A quiet trainer: four steps of two images, without checkpoints, drop path and warm-up."""
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "learning_rate": 1e-2,
        "scale_learning_rates": False,
        "warmup_epochs": 0,
        "drop_path_rate": 0.0,
        "max_steps": 4,
    }
    processors = {
        name: options.pop(name) for name in ("processing_class", "teacher_processing_class") if name in options
    }
    return FeatureDistillationTrainer(
        model=student or tiny_student(),
        teacher=teacher or tiny_teacher(),
        args=FeatureDistillationConfig(**{**settings, **options}),
        train_dataset=train,
        eval_dataset=evaluate,
        **{"processing_class": tiny_image_processor(), **processors},
    )
