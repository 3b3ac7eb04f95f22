"""What a distillation may be given: no student, a column of images, decoded ones; and what it refuses at once."""

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from tests.tiny import IMAGE_SIZE, image_bytes, tiny_clip_config, tiny_dinov2_config, tiny_image, tiny_image_processor
from tests.trainer.tiny_distillation import distillation_trainer, image_rows, tiny_student, tiny_teacher
from tests.trainer.tiny_training import losses
from vistok import FeatureDistillationConfig, FeatureDistillationTrainer, random_student
from vistok.modeling.vision_features import build_vision_tower


def config(tmp_path, **options):
    quiet = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    short = {"max_steps": 1, "warmup_epochs": 0, "save_strategy": "no", "seed": 7}
    return FeatureDistillationConfig(**{**quiet, **short, **options})


def test_without_a_student_it_is_the_teachers_architecture_with_random_weights_of_the_seed(tmp_path):
    teacher, processor = tiny_teacher(), tiny_image_processor()
    trainer = FeatureDistillationTrainer(
        teacher=teacher,
        args=config(tmp_path),
        train_dataset=image_rows(4),
        teacher_processing_class=processor,
    )
    expected = random_student(teacher.config, IMAGE_SIZE, seed=7).state_dict()
    found = trainer.student.state_dict()
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())
    trainer.train()
    with pytest.raises(ValueError, match="teacher is missing"):
        FeatureDistillationTrainer(args=config(tmp_path), processing_class=processor)
    with pytest.raises(ValueError, match="processing_class is missing"):
        FeatureDistillationTrainer(teacher=teacher, args=config(tmp_path))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_column_of_images_will_do(tmp_path, stream, cached):
    rows = [image_bytes(index % 3) for index in range(6)]
    data = Dataset.from_dict({"image": rows, "label": list(range(6))}).cast_column("image", Image())
    if not stream:
        options = {
            "cache_teacher_features": cached,
            "feature_cache_dir": str(tmp_path / "cache"),
            "augment": not cached,
        }
        trainer = distillation_trainer(tmp_path, data, data, max_steps=2, **options)
        assert len(trainer.train_dataset) == len(trainer.eval_dataset) == 3
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0
    elif not cached:
        distillation_trainer(tmp_path, data.to_iterable_dataset(), max_steps=3).train()
    with pytest.raises(ValueError, match="has the columns photo, and its images are looked for in `images`"):
        distillation_trainer(tmp_path, data.rename_column("image", "photo").remove_columns("label"))


def test_decoded_images_are_all_used(tmp_path):
    features = Features({"id": Value("string"), "images": List(Image())})
    rows = [{"id": str(index), "images": [tiny_image(index)]} for index in range(60)]
    decoded = Dataset.from_list(rows, features=features)
    trainer = distillation_trainer(tmp_path, decoded, max_steps=2)
    assert len(trainer.train_dataset) == 60
    trainer.train()
    twice = distillation_trainer(tmp_path, Dataset.from_list([*rows, *rows[:9]], features=features))
    assert len(twice.train_dataset) == 60
    assert losses(trainer)[0] > 0


def test_masks_of_an_evaluation_are_those_of_no_epoch_of_the_training(tmp_path):
    trainer = distillation_trainer(tmp_path, image_rows(4), image_rows(3), mask_ratio=0.4, max_steps=6)
    before = next(iter(trainer.get_eval_dataloader()))["masked_patches"]
    trainer.train()
    assert int(trainer.data_collator.epoch) > 0
    assert torch.equal(next(iter(trainer.get_eval_dataloader()))["masked_patches"], before)
    # Neither with or without augmentation.
    plain = distillation_trainer(tmp_path, image_rows(4), image_rows(3), mask_ratio=0.4, augment=False, max_steps=6)
    plain.train()
    assert torch.equal(next(iter(plain.get_eval_dataloader()))["masked_patches"], before)


def test_a_run_killed_after_its_last_step_evaluates_as_one_that_was_not(tmp_path):
    options = {"mask_ratio": 0.4, "save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    whole = distillation_trainer(tmp_path, image_rows(4), image_rows(3), **options)
    whole.train()
    expected = whole.evaluate()["eval_loss"]
    resumed = distillation_trainer(tmp_path, image_rows(4), image_rows(3), **options)
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)


def test_the_size_that_would_fit_is_named_also_of_teachers_with_a_patch_size_of_two_numbers(tmp_path):
    teacher = build_vision_tower(tiny_dinov2_config())
    teacher.config.patch_size = [8, 8]
    student = tiny_student(tiny_dinov2_config(patch_size=4))
    with pytest.raises(ValueError, match=r"Set teacher_image_size to 48, .* in a recipe both are called image_size"):
        distillation_trainer(tmp_path, image_rows(4), student=student, teacher=teacher)


def test_a_warm_up_in_epochs_counts_the_batches_that_there_are(tmp_path):
    options = {"max_steps": -1, "num_train_epochs": 4, "warmup_epochs": 2}
    trainer = distillation_trainer(tmp_path, image_rows(5), dataloader_drop_last=True, **options)
    trainer.train()
    assert trainer.state.max_steps == 8 and trainer._warmup_steps(8) == 4
    assert distillation_trainer(tmp_path, image_rows(5), **options)._warmup_steps(12) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_dtype": "int8"}, "save_dtype is 'int8', expected float32, float16, bfloat16"),
        ({"feature_cache_dtype": "float64"}, "feature_cache_dtype is 'float64', expected float32"),
        ({"mask_ratio": "0.5"}, "mask_ratio is '0.5', expected a number"),
        ({"beta": "x"}, "beta is 'x', expected a number"),
        ({"drop_path_rate": True}, "drop_path_rate is True, expected a number"),
        ({"image_size": 24.5}, "image_size is 24.5, expected a whole number"),
        ({"student_feature_layer": "last"}, "student_feature_layer is 'last', expected a whole number, or 'final'"),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused_at_once(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_the_final_features_may_be_named(tmp_path):
    args = config(tmp_path, teacher_feature_layer="final", student_feature_layer="final")
    assert args.teacher_feature_layer is None and args.student_feature_layer is None
    clip = build_vision_tower(tiny_clip_config())
    trainer = distillation_trainer(tmp_path, image_rows(4), teacher=clip, teacher_feature_layer="final")
    assert trainer.teacher_features(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).shape == (1, 10, 32)
