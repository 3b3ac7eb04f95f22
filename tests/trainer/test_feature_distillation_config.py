"""Arguments of feature distillation: by default the published protocol; its learning rates; what is refused."""

import math

import pytest

from tests.trainer.test_visual_language_config import RECIPES
from tests.trainer.tiny_distillation import distillation_trainer, image_rows
from vistok import FeatureDistillationConfig
from vistok.configuration.shipped import shipped_path
from vistok.trainer.feature_distillation_recipe import FeatureDistillationRecipe
from vistok.trainer.feature_distillation_trainer import learning_rate
from vistok.trainer.recipe import load_recipe

DISTILLATION = [path for path in RECIPES if isinstance(load_recipe(path), FeatureDistillationRecipe)]


def config(**options) -> FeatureDistillationConfig:
    return FeatureDistillationConfig(**{"output_dir": "unused", "use_cpu": True, "report_to": "none", **options})


def test_the_defaults_are_the_protocol_of_wei_with_the_epochs_of_gvt():
    args = config()
    rates = (args.warmup_start_learning_rate, args.learning_rate, args.final_learning_rate)
    assert rates == (5e-7, 3e-4, 5e-6) and args.warmup_epochs == 10 and args.num_train_epochs == 50
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.max_grad_norm) == (0.9, 0.999, 0.05, 3.0)
    assert (args.beta, args.mask_ratio, args.drop_path_rate, args.min_crop_share) == (2.0, 0.0, 0.3, 0.08)
    assert args.augment and args.teacher_feature_layer is None and args.feature_tokens == "all"


def test_all_three_rates_are_scaled_with_the_global_batch():
    args = config(per_device_train_batch_size=128, gradient_accumulation_steps=8)
    assert args.global_batch_size == 1024
    warmup, steps = 100, 500
    assert learning_rate(args, 0, warmup, steps) == pytest.approx(2 * 5e-7)
    assert learning_rate(args, 50, warmup, steps) == pytest.approx(2 * (5e-7 + 3e-4) / 2)
    assert learning_rate(args, 100, warmup, steps) == pytest.approx(2 * 3e-4)
    assert learning_rate(args, 300, warmup, steps) == pytest.approx(2 * (5e-6 + 3e-4) / 2)
    assert learning_rate(args, 500, warmup, steps) == pytest.approx(2 * 5e-6)
    quarter = 5e-6 + (3e-4 - 5e-6) * (1 + math.cos(math.pi / 4)) / 2
    assert learning_rate(args, 200, warmup, steps) == pytest.approx(2 * quarter)
    args.scale_learning_rates = False
    assert learning_rate(args, 100, warmup, steps) == pytest.approx(3e-4)


def test_the_warm_up_is_counted_in_epochs_of_distinct_images(tmp_path):
    options = {"max_steps": -1, "num_train_epochs": 5, "warmup_epochs": 2, "learning_rate": 3e-4}
    trainer = distillation_trainer(tmp_path, image_rows(14, per_image=2), **options)  # 7 images: 4 steps an epoch
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([learning_rate(trainer.args, step, 8, 20) for step in range(20)])
    assert rates[0] == 5e-7 and max(rates) == rates[8] == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0, expected at least 0 and less than 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1"),
        ({"feature_tokens": "cls"}, "feature_tokens is 'cls', expected all or patches"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type is"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"final_learning_rate": 1.0}, "final_learning_rate is 1.0, expected between 0 and learning_rate"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"min_crop_share": 0.0}, "min_crop_share is 0.0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"cache_teacher_features": True}, "needs fixed images and augment changes them"),
        ({"save_dtype": "nn"}, "save_dtype is 'nn'"),
        ({"remove_unused_columns": True}, "remove_unused_columns must stay False"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_warm_up_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"warm-up of 20 steps \(warmup_epochs 10\) leaves none of 4"):
        distillation_trainer(tmp_path, image_rows(4), warmup_epochs=10).train()
    stream = image_rows(4).to_iterable_dataset()
    with pytest.raises(ValueError, match="an epoch of a stream has, nobody knows: give warmup_steps"):
        distillation_trainer(tmp_path, stream, warmup_epochs=10).train()


@pytest.mark.parametrize("path", DISTILLATION, ids=lambda path: path.name)
def test_every_shipped_recipe_makes_valid_arguments(path, tmp_path):
    recipe = load_recipe(path, ["--training.use_cpu", "true", "--training.report_to", "none"])
    recipe.training["output_dir"] = str(tmp_path)
    assert recipe.arguments().global_batch_size > 0 and recipe.data.train


def test_the_recipe_of_the_paper_says_what_the_paper_says():
    recipe = load_recipe(shipped_path("recipes/gvt/distill.yaml"))
    training = recipe.training
    assert recipe.student.model == "same" and recipe.teacher.feature_layer is None  # Section 3.2
    assert (
        training["num_train_epochs"] == 50 and training["beta"] == 2.0 and training["mask_ratio"] == 0
    )  # Section 4.1
    assert training["drop_path_rate"] == 0.3 and training["warmup_epochs"] == 10
