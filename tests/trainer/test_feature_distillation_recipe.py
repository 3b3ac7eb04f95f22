"""A recipe of feature distillation runs to a folder that loads, with card, results and loss curve."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, SiglipVisionConfig

from tests.tiny import IMAGE_SIZE, livelier, same, tiny_dinov2_config, tiny_image, tiny_image_processor
from tests.trainer.tiny_distillation import IMAGENET_MEAN, IMAGENET_STD
from vistok import FeatureDistillationTrainer
from vistok.configuration.shipped import shipped_path
from vistok.evaluation.representation_quality import representation_quality
from vistok.modeling.distillation_students import random_student
from vistok.modeling.vision_features import build_vision_tower
from vistok.processing.images import BadSampleError
from vistok.trainer import run_recipe as run_recipe_module
from vistok.trainer.distillation_probe import labelled_images
from vistok.trainer.feature_distillation_recipe import FeatureDistillationRecipe
from vistok.trainer.recipe import TRAINERS, load_recipe, recipe_from_dict
from vistok.trainer.run_recipe import run_recipe

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWER |= {"image_size": IMAGE_SIZE, "patch_size": 8}
TEXT = """
trainer: feature-distillation
teacher: towers/small
student: same
data:
  train:
    - {format: images, path: photos}
training:
  mask_ratio: 0.4
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text=TEXT, *overrides):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return load_text


class TestReading:
    def test_a_name_alone_stands_for_a_section(self, load):
        recipe = load()
        assert isinstance(recipe, FeatureDistillationRecipe)
        assert recipe.teacher.model == "towers/small" and recipe.teacher.feature_layer is None
        assert recipe.student.model == "same" and recipe.probe is None
        assert recipe.training == {"mask_ratio": 0.4}
        values = recipe.to_dict()
        assert list(values) == ["trainer", *FeatureDistillationRecipe.sections]
        assert recipe_from_dict(values) == recipe

    def test_what_a_recipe_leaves_out_has_defaults(self, load):
        recipe = load("trainer: feature-distillation\n", "--teacher.feature_layer", "-3", "--student.image_size=112")
        assert recipe.teacher.model == "vistok:dinov2-small" and recipe.teacher.feature_layer == -3
        args = FeatureDistillationRecipe.arguments(load(TEXT, "--training.use_cpu", "true", "--training.beta", "1"))
        assert args.beta == 1 and args.mask_ratio == 0.4

    def test_a_field_of_a_section_that_is_a_name_may_be_overridden(self, load):
        recipe = load(TEXT, "--teacher.feature_layer", "-3", "--student.feature_layer", "final")
        assert recipe.teacher.model == "towers/small" and recipe.teacher.feature_layer == -3
        assert recipe.student.model == "same" and recipe.student.feature_layer is None
        assert load(TEXT, "--teacher.model", "towers/large").teacher.model == "towers/large"

    def test_a_recipe_without_a_trainer_is_one_of_visual_language(self, load):
        recipe = load("training: {seed: 3}\n")
        assert type(recipe) is TRAINERS["visual-language"] and "trainer" not in recipe.to_dict()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainer: distillation\n", "'distillation' is no trainer of a recipe: choose visual-language, feature-"),
            ("trainer: [a]\n", "is no trainer of a recipe"),
            (TEXT + "model: {}\n", "'model' is no field of recipe"),
            (TEXT + "  mask_ration: 0.4\n", "'mask_ration' is no field of training; did you mean mask_ratio"),
            (TEXT + "  teacher_feature_layer: 3\n", "'teacher_feature_layer' is feature_layer in the section teacher"),
            (TEXT + "  image_size: 3\n", "'image_size' is a field of the section student"),
            (TEXT + "  beta: two\n", "training.beta is 'two', expected float"),
            (TEXT.replace("student: same", "student: {layers: 3}"), "'layers' is no field of student"),
            (TEXT + "probe: {train: {format: images}}\n", "probe has no test"),
            (TEXT + "probe: {train: {formt: images}, test: {format: images}, k: 3}\n", "formt"),
            (TEXT + "probe: {train: {format: images}, test: {format: images}, pooling: max}\n", "pooling is 'max'"),
            (TEXT + "probe: {train: {format: images}, test: {format: images}, k: 0}\n", "probe.k is 0, expected a"),
            (TEXT.replace("student: same", "student: {feature_layer: last}"), "student.feature_layer is 'last'"),
        ],
    )
    def test_what_is_wrong_is_named(self, load, text, message):
        with pytest.raises(ValueError, match=message):
            recipe = load(text)
            recipe.arguments()


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe on twelve images in three folders, one for each class, and on a teacher in a folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for index in range(12):
        place = tmp_path / "photos" / ("train" if index < 8 else "test") / f"class {index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        tiny_image(index).save(place / f"{index}.png")
    torch.manual_seed(0)
    livelier(build_vision_tower(tiny_dinov2_config())).save_pretrained(tmp_path / "tower")
    tiny_image_processor().save_pretrained(tmp_path / "tower")
    source = {"format": "images", "path": str(tmp_path / "photos")}

    def make(**sections):
        values = {
            "trainer": "feature-distillation",
            "teacher": {"model": str(tmp_path / "tower"), "feature_layer": 1},
            "student": {"model": "same"},
            "data": {
                "train": [{**source, "name": "photos", "split": "train"}],
                "eval": [{**source, "name": "held-out", "split": "test"}],
            },
            "probe": {"train": {**source, "split": "train"}, "test": {**source, "split": "test"}, "label": "label"},
            "card": {"title": "Tiny tower", "license": "mit"},
        }
        training = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "disable_tqdm": True,
            "max_steps": 4,
            "warmup_steps": 1,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "scale_learning_rates": False,
            "drop_path_rate": 0.1,
            "report_to": "none",
        }
        for name, section in sections.items():
            values[name] = {**(values.get(name) or {}), **section} if name != "training" else section
        return recipe_from_dict({**values, "training": {**training, **values.get("training", {})}})

    return make


def test_a_run_ends_with_an_ordinary_vision_model(recipe, tmp_path):
    results = run_recipe(recipe(), command="vistok train tiny.yaml")
    folder = tmp_path / "run"
    expected = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "results.json"}
    assert expected | {"loss.png", "training_log.jsonl"} <= {path.name for path in folder.iterdir()}
    student, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert type(student).__name__ == "Dinov2Model" and processor.size["height"] == IMAGE_SIZE

    stored = json.loads((folder / "results.json").read_text())
    assert stored == json.loads(json.dumps(results)) and stored["recipe"]["trainer"] == "feature-distillation"
    assert stored["steps"] == 4 and stored["parameters"]["all"] == sum(p.numel() for p in student.parameters())
    assert set(stored["metrics"]) >= {
        f"eval_held-out_{n}" for n in ("loss", "cosine_similarity", "explained_variance")
    }
    # What is recorded of the features is what the saved model, the untrained one and the teacher give.
    train, test = (labelled_images(getattr(recipe().probe, side), "label") for side in ("train", "test"))
    teacher = AutoModel.from_pretrained(tmp_path / "tower")
    towers = {"after": student, "before": random_student(teacher.config, IMAGE_SIZE, seed=42), "teacher": teacher}
    for name, tower in towers.items():
        layer = 1 if name == "teacher" else None
        found = representation_quality(tower, processor, train, test, feature_layer=layer)
        assert stored["representation"][name] == json.loads(json.dumps(found))
    assert stored["representation"]["num_classes"] == 3 and "majority" in stored["representation"]

    card = (folder / "README.md").read_text()
    for words in ("# Tiny tower", "AutoModel.from_pretrained", "vistok train tiny.yaml", "`hidden_states[1]`", "mit."):
        assert words in card
    assert str(tmp_path) not in card and "pipeline_tag: image-feature-extraction" in card and "- dinov2" in card
    after = stored["representation"]["after"]["knn"]
    assert f"| **this model** | {after['accuracy']:.1f} ({after['interval'][0]:.1f} to" in card
    with Image.open(folder / "loss.png") as picture:
        assert len(picture.convert("L").getcolors()) > 10


@pytest.fixture
def without_curve(monkeypatch):
    """Runs that draw no loss curve, which takes longer than all the rest."""
    monkeypatch.setattr(run_recipe_module, "draw_loss_curve", lambda *args: None)


@pytest.mark.usefixtures("without_curve")
def test_a_killed_run_that_is_started_again_ends_as_if_it_had_not_been_killed(recipe, tmp_path, monkeypatch):
    whole = run_recipe(recipe(training={"output_dir": str(tmp_path / "whole")}))
    step = FeatureDistillationTrainer.training_step

    def mortal(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(FeatureDistillationTrainer, "training_step", mortal)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe())
    assert not (tmp_path / "run" / "results.json").exists()
    with pytest.raises(ValueError, match=r"of a run with another recipe: .*mask_ratio is 0\.5 and was not set"):
        run_recipe(recipe(training={"mask_ratio": 0.5}))
    with pytest.raises(ValueError, match=r"teacher\.feature_layer is 2 and was 1"):
        run_recipe(recipe(teacher={"feature_layer": 2}))
    again = run_recipe(recipe())
    assert again["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-6)
    assert again["representation"] == whole["representation"]
    first, second = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "run"))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    assert run_recipe(recipe()) == again  # nothing is left to do


@pytest.mark.usefixtures("without_curve")
def test_students_of_other_kinds(recipe, tmp_path):
    short = {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "warmup_steps": 0, "warmup_epochs": 0}
    run_recipe(recipe(student={"model": "wei"}, training={**short, "output_dir": str(tmp_path / "wei")}))
    assert type(AutoModel.from_pretrained(tmp_path / "wei")).__name__ == "BeitModel"
    smaller = recipe(
        student={"config": {"num_hidden_layers": 1}}, training={**short, "output_dir": str(tmp_path / "small")}
    )
    run_recipe(smaller)
    assert AutoModel.from_pretrained(tmp_path / "small").config.num_hidden_layers == 1
    results = run_recipe(recipe(student={"model": str(tmp_path / "wei")}, training=short))
    assert {"before", "after", "teacher", "random"} <= set(results["representation"])
    with pytest.raises(ValueError, match="'layers' is no field of Dinov2Config"):
        run_recipe(recipe(student={"config": {"layers": 1}}, training=short), resume=False)
    with pytest.raises(ValueError, match=r"changes the teacher's architecture, and student.model is 'wei'"):
        run_recipe(recipe(student={"model": "wei", "config": {"num_hidden_layers": 1}}, training=short), resume=False)


@pytest.mark.usefixtures("without_curve")
def test_a_probe_that_fails_costs_neither_the_model_nor_another_training(recipe, tmp_path, monkeypatch, caplog):
    made = recipe()
    last = sorted((tmp_path / "photos" / "test").rglob("*.png"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    made.data.eval, made.training["eval_strategy"] = [], "no"
    with pytest.raises(BadSampleError, match="truncated"):
        run_recipe(made)
    folder = tmp_path / "run"
    assert AutoModel.from_pretrained(folder) and (folder / "README.md").is_file()
    assert json.loads((folder / "results.json").read_text())["steps"] == 4
    assert f"saved in {folder}" in caplog.text

    def never(*args, **kwargs):
        raise AssertionError("it was trained again")

    monkeypatch.setattr(FeatureDistillationTrainer, "training_step", never)
    weights = AutoModel.from_pretrained(folder).state_dict()
    last.write_bytes(content)
    results = run_recipe(made)
    assert results["representation"]["num_test"] == 4
    assert "k-NN" in (folder / "README.md").read_text()
    assert run_recipe(made) == results  # nothing is left to do
    made.probe.k, made.probe.pooling = 1, "cls"  # another question to the same model
    again = run_recipe(made)
    assert again["representation"] != results["representation"] and again["recipe"]["probe"]["pooling"] == "cls"
    found = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_what_cannot_be_probed_is_refused_before_the_training(recipe, tmp_path):
    made = recipe()
    args = made.arguments()
    made.probe.pooling = "cls"
    student = build_vision_tower(SiglipVisionConfig(**TOWER))
    student.save_pretrained(tmp_path / "siglip")
    tiny_image_processor().save_pretrained(tmp_path / "siglip")
    made.student.model, args.feature_tokens = str(tmp_path / "siglip"), "patches"
    with pytest.raises(ValueError, match=r"pooling 'cls' reads \[CLS\], and SiglipVisionModel has none"):
        made.prepare(args)
    flat = tmp_path / "flat" / "val"
    flat.mkdir(parents=True)
    tiny_image(1).save(flat / "1.png")
    made.probe.test = {"format": "images", "path": str(tmp_path / "flat")}
    with pytest.raises(ValueError, match=r"1 of 1 test images have labels that no training image has, 'val', and so"):
        made.prepare(args)


def test_a_student_may_have_pixel_statistics_of_its_own(recipe):
    made = recipe(student={"model": "wei", "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD})
    made.probe = None
    trainer = made.prepare(made.arguments()).trainer
    student, teacher = trainer.processing_class, AutoImageProcessor.from_pretrained(made.teacher.model)
    assert student.image_mean == IMAGENET_MEAN and student.image_std == IMAGENET_STD != teacher.image_std
    # The teacher sees what it would see by itself.
    seen = calls_of(trainer)
    image = tiny_image(3)
    trainer._with_teacher_features(dict(student(image, return_tensors="pt")))
    assert same(seen[0], teacher(image, return_tensors="pt")["pixel_values"])
    shipped = load_recipe(shipped_path("recipes/gvt/distill-wei.yaml"))
    assert shipped.student.image_mean == IMAGENET_MEAN and shipped.student.image_std == IMAGENET_STD
    with pytest.raises(ValueError, match=r"image_mean is \[0.5\], expected a number for each of three channels"):
        made = recipe(student={"image_mean": [0.5]})
        made.prepare(made.arguments())


def calls_of(trainer):
    seen = []
    features = trainer.teacher_features
    trainer.teacher_features = lambda pixel_values: (seen.append(pixel_values), features(pixel_values))[1]
    return seen


def test_labels_are_those_of_a_column_or_the_last_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    lines = []
    for index, (kind, answer) in enumerate([("shape", "circle"), ("shape", "square"), ("color", "red")]):
        tiny_image(index).save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": f"<image>\n{kind}?"}, {"from": "gpt", "value": answer}]
        lines += [json.dumps({"id": f"{index}", "image": f"{index}.png", "conversations": turns})] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = {"format": "llava", "path": str(tmp_path / "a.jsonl"), "images": str(tmp_path)}
    images, labels = labelled_images(source)
    assert labels == ["circle", "square", "red"] and [image["path"][-5:] for image in images] == [
        "0.png",
        "1.png",
        "2.png",
    ]
    assert labelled_images(source, where={"id": "1"})[1] == ["square"]
    with pytest.raises(ValueError, match="has no column 'kind'"):
        labelled_images(source, label="kind")
    with pytest.raises(ValueError, match=r"has no example where {'id': '7'}"):
        labelled_images(source, where={"id": "7"})


@pytest.mark.real_weights("dinov2-small")
@pytest.mark.real_data("easy-vqa")
def test_the_demo_recipe_runs_on_real_weights_and_images(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    recipe = load_recipe(
        shipped_path("recipes/gvt/distill-demo.yaml"),
        ["--data.train.0.split", "test", "--data.train.0.max_samples", "12"],
    )
    recipe.data.train, recipe.data.eval, recipe.probe = recipe.data.train[:1], [], None
    recipe.training |= {"output_dir": str(tmp_path / "run"), "max_steps": 3, "warmup_steps": 1, "report_to": "none"}
    recipe.training |= {"per_device_train_batch_size": 4, "save_strategy": "no", "eval_strategy": "no"}
    recipe.training |= {"logging_steps": 1, "use_cpu": True}
    results = run_recipe(recipe)
    curve = [entry["loss"] for entry in results["log_history"] if "loss" in entry]
    assert len(curve) == 3 and curve[-1] < 0.9 * curve[0]
    student = AutoModel.from_pretrained(tmp_path / "run")
    assert student.config.num_hidden_layers == 12 and student.embeddings.position_embeddings.shape[1] == 65
    assert "`vistok:dinov2-small`" in (tmp_path / "run" / "README.md").read_text()
