"""A student learns its teacher's features, is resumed exactly, and is saved as any vision model."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    ViTConfig,
)

from tests.tiny import (
    IMAGE_SIZE,
    image_bytes,
    livelier,
    same,
    save_base_models,
    tiny_clip_config,
    tiny_dinov2_config,
    tiny_eva_config,
    tiny_image_processor,
    tiny_llama_config,
)
from tests.trainer.tiny_distillation import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    distillation_trainer,
    image_rows,
    tiny_student,
    tiny_teacher,
)
from tests.trainer.tiny_training import largest_difference, losses, moved, parameters
from vistok import GVTForConditionalGeneration, feature_distillation_loss
from vistok.modeling.distillation_students import wei_student
from vistok.modeling.trained_weights import CheckpointError
from vistok.modeling.vision_features import build_vision_tower
from vistok.trainer.reproducible_trainer import DivergedError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SIZES |= {"image_size": IMAGE_SIZE, "patch_size": 8}
STUDENTS = {
    "same": lambda: tiny_student(),
    "wei": lambda: wei_student(tiny_dinov2_config(), IMAGE_SIZE),
    "clip": lambda: build_vision_tower(tiny_clip_config()),
    "eva": lambda: build_vision_tower(tiny_eva_config()),
    "vit": lambda: build_vision_tower(ViTConfig(**SIZES)),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_students_of_any_kind_learn_and_the_teacher_stays(tmp_path, name):
    teacher = tiny_teacher()
    before = parameters(teacher)
    trainer = distillation_trainer(
        tmp_path,
        image_rows(8),
        student=STUDENTS[name](),
        teacher=teacher,
        max_steps=16,
        augment=False,
        learning_rate=3e-3,
    )
    untrained = parameters(trainer.model)
    trainable = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert moved(teacher, before) == set() and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    changed = moved(trainer.model, untrained)
    assert {"projector.weight", "projector.bias"} <= changed
    assert trainable <= changed
    found = losses(trainer)
    assert sum(found[-4:]) < 0.8 * sum(found[:4])


def test_what_the_loss_does_not_reach_is_not_trained(tmp_path):
    vit = build_vision_tower(ViTConfig(**SIZES))
    trainer = distillation_trainer(tmp_path, image_rows(4), student=vit)
    unused = {n for n, p in trainer.student.named_parameters() if not p.requires_grad}
    assert unused == {"pooler.dense.weight", "pooler.dense.bias"}
    earlier = distillation_trainer(tmp_path, image_rows(4), student=tiny_student(), student_feature_layer=1)
    unused = {n for n, p in earlier.student.named_parameters() if not p.requires_grad}
    assert (
        all(n.startswith(("encoder.layer.1", "layernorm", "embeddings.mask_token")) for n in unused)
        and len(unused) > 8
    )


def test_the_loss_is_that_of_the_batch_as_both_see_it(tmp_path):
    teacher, student = tiny_teacher(), tiny_student(tiny_clip_config())
    trainer = distillation_trainer(
        tmp_path,
        image_rows(2),
        student=student,
        teacher=teacher,
        augment=False,
        teacher_feature_layer=1,
        processing_class=tiny_image_processor(image_mean=CLIP_MEAN, image_std=CLIP_STD),
        teacher_processing_class=tiny_image_processor(image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    found = trainer.compute_loss(trainer.model, batch)
    # What each would see by itself, in whatever order the images came.
    values = []
    for order in ([0, 1], [1, 0]):
        images = [tiny_image_of(index) for index in order]
        seen = {
            name: tiny_image_processor(image_mean=mean, image_std=std)(images, return_tensors="pt")["pixel_values"]
            for name, mean, std in (("student", CLIP_MEAN, CLIP_STD), ("teacher", IMAGENET_MEAN, IMAGENET_STD))
        }
        s = student.post_layernorm(student(seen["student"]).last_hidden_state)
        t = teacher(seen["teacher"], output_hidden_states=True).hidden_states[1]
        values.append(feature_distillation_loss(s, t, trainer.model.projector))
    assert any(same(found, value) for value in values)


def tiny_image_of(index):
    from vistok.processing.images import load_image

    return load_image(image_bytes(index))


def test_an_image_counts_once_per_epoch_however_many_questions_are_about_it(tmp_path):
    trainer = distillation_trainer(tmp_path, image_rows(12, per_image=3))
    assert len(trainer.train_dataset) == 4
    with pytest.raises(ValueError, match="no images"):
        distillation_trainer(tmp_path, image_rows(2).map(lambda _: {"images": []}))


def test_teacher_and_student_see_the_same_crop_at_the_size_of_each(tmp_path):
    student = tiny_student(tiny_dinov2_config(patch_size=4, image_size=12))
    trainer = distillation_trainer(tmp_path, image_rows(4), student=student, image_size=12, teacher_image_size=24)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[-1] == 12 and batch["teacher_pixel_values"].shape[-1] == 24
    smaller = nn.functional.interpolate(batch["teacher_pixel_values"], size=12, mode="area")
    for one, other in ((0, 1), (1, 0)):
        difference = (smaller[one] - batch["pixel_values"][one]).abs().mean()
        assert difference < 0.7 * (smaller[other] - batch["pixel_values"][one]).abs().mean()
    trainer.train()
    with pytest.raises(ValueError, match=r"24 pixels into 6 × 6 patches, and .* 3 × 3: .*image_size to 48"):
        distillation_trainer(tmp_path, image_rows(4), student=student, image_size=24)


def test_tokens_before_the_patches_have_to_agree_or_are_left_out(tmp_path):
    siglip = SiglipVisionConfig(**SIZES)
    with pytest.raises(ValueError, match="student has 0 tokens before its 9 patches and the teacher 1"):
        distillation_trainer(tmp_path, image_rows(4), student=build_vision_tower(siglip))
    distillation_trainer(tmp_path, image_rows(4), student=build_vision_tower(siglip), feature_tokens="patches").train()


@pytest.mark.parametrize("name", ["same", "wei", "clip", "eva"])
def test_masking_hides_patches_from_the_student_and_takes_the_loss_of_these(tmp_path, name):
    trainer = distillation_trainer(tmp_path, image_rows(4), student=STUDENTS[name](), mask_ratio=0.4, augment=False)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    mask = batch["masked_patches"]
    assert mask.shape == (2, 9) and mask.sum(1).tolist() == [4, 4] and not torch.equal(mask[0], mask[1])
    model = trainer.model.eval()
    loss = trainer.compute_loss(model, dict(batch))
    # Pixels of masked patches are not seen …
    cells = mask.view(2, 1, 3, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
    features = trainer.teacher_features(batch["pixel_values"])
    for hidden, changes in ((cells, False), (~cells, True)):
        pixels = torch.where(hidden, 5 * torch.randn_like(batch["pixel_values"]), batch["pixel_values"])
        other = model(pixel_values=pixels, teacher_features=features, masked_patches=mask)["loss"]
        assert same(other, loss) != changes
    # … and what the teacher says of the others does not count.
    elsewhere = features.clone()
    elsewhere[:, 1:][~mask] += 3 * torch.randn_like(elsewhere[:, 1:][~mask])
    assert same(model(batch["pixel_values"], elsewhere, mask)["loss"], loss)
    model.train()
    before = model.mask_token.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.mask_token, before)


def test_weight_decay_is_that_of_matrices_alone(tmp_path):
    for student in (tiny_student(), STUDENTS["wei"](), STUDENTS["clip"]()):
        trainer = distillation_trainer(tmp_path, image_rows(4), student=student, mask_ratio=0.3)
        decayed = set(trainer.get_decay_parameter_names(trainer.model))
        matrices = {f"{n}.weight" for n, m in trainer.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        assert decayed == matrices
        groups = trainer.create_optimizer().param_groups
        assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


def test_a_cached_teacher_is_the_teacher(tmp_path):
    options = {"augment": False, "max_steps": 3, "feature_cache_dir": str(tmp_path / "cache")}
    plain = distillation_trainer(tmp_path, image_rows(6), **options)
    plain.train()
    cached = distillation_trainer(
        tmp_path, image_rows(6), image_rows(3), cache_teacher_features=True, feature_cache_dtype="float32", **options
    )

    def never(*args, **kwargs):
        raise AssertionError("the teacher was run")

    cached.teacher.forward = never
    cached.train()
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-5)
    assert cached.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="load train_dataset with streaming off"):
        distillation_trainer(tmp_path, image_rows(6).to_iterable_dataset(), cache_teacher_features=True, **options)


@pytest.mark.parametrize("name", ["augmented", "masked with drop path", "stream"])
def test_a_killed_and_resumed_run_ends_as_one_that_was_not(tmp_path, name):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, "logging_steps": 1}
    options |= {"mask_ratio": 0.3, "drop_path_rate": 0.4} if name.startswith("masked") else {}

    def make(folder):
        data = image_rows(6)
        data = data.to_iterable_dataset(num_shards=2) if name == "stream" else data
        return distillation_trainer(
            tmp_path / folder, data, image_rows(3), eval_strategy="steps", eval_steps=2, **options
        )

    whole, killed, resumed = make("whole"), make("killed"), make("killed")
    torch.manual_seed(1)  # of drop path: a process starts with it where it makes its trainer
    whole.train()
    torch.manual_seed(1)
    step = killed.training_step

    def mortal(*args, **kwargs):
        if killed.state.global_step == 3:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    killed.training_step = mortal
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint="auto")
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    assert len(losses(resumed)) == 5
    assert largest_difference(parameters(whole.model), parameters(resumed.model)) < 1e-6


def test_a_checkpoint_of_another_student_is_refused(tmp_path):
    distillation_trainer(tmp_path, image_rows(4), save_strategy="steps", save_steps=2, max_steps=2).train()
    masked = distillation_trainer(tmp_path, image_rows(4), mask_ratio=0.3)
    with pytest.raises(CheckpointError, match="mask_token"):
        masked.train(resume_from_checkpoint=True)


def test_training_stops_where_the_loss_is_no_number(tmp_path):
    student = tiny_student()
    trainer = distillation_trainer(tmp_path, image_rows(4), student=student)
    with torch.no_grad():
        student.layernorm.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="loss is nan in step 1"):
        trainer.train()


def test_evaluation_measures_cosine_and_explained_variance(tmp_path):
    trainer = distillation_trainer(tmp_path, image_rows(4), {"held": image_rows(5)})
    metrics = trainer.evaluate()
    predicted, target = [], []
    trainer.model.eval()
    for batch in trainer.get_eval_dataloader("held"):
        outputs = trainer.model(**trainer._with_teacher_features(batch))
        predicted.append(outputs["predicted"].flatten(0, 1)), target.append(outputs["target"].flatten(0, 1))
    p, t = torch.cat(predicted).double(), torch.cat(target).double()
    cosine = nn.functional.cosine_similarity(p, t).mean().item()
    explained = 1 - ((p - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()
    loss = nn.functional.smooth_l1_loss(p, t, beta=2.0).item()
    assert metrics["eval_held_cosine_similarity"] == pytest.approx(cosine, abs=1e-5)
    assert metrics["eval_held_explained_variance"] == pytest.approx(explained.item(), abs=1e-5)
    assert metrics["eval_held_loss"] == pytest.approx(loss, abs=1e-5)


@pytest.fixture(scope="module", params=["same", "wei", "clip", "eva"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer = distillation_trainer(
        folder, image_rows(4), student=STUDENTS[request.param](), mask_ratio=0.3, drop_path_rate=0.2
    )
    trainer.train()
    trainer.save_model()
    return folder, trainer


class TestTheSavedStudent:
    def test_is_an_ordinary_vision_model_with_its_image_processor(self, saved, caplog):
        folder, trainer = saved
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
            path.name for path in folder.iterdir()
        }
        loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert type(loaded) is type(trainer.student)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor(tiny_image_of(0), return_tensors="pt")["pixel_values"]
        assert pixels.shape[-1] == IMAGE_SIZE
        student = copy.deepcopy(trainer.student).eval()
        assert torch.equal(loaded(pixels).last_hidden_state, student(pixels).last_hidden_state)

    @pytest.mark.parametrize("name", ["same", "wei"])
    def test_classifies_images(self, tmp_path, name):
        distillation_trainer(tmp_path, image_rows(4), student=STUDENTS[name]()).save_model()
        model = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3)
        tower, found = AutoModel.from_pretrained(tmp_path), dict(model.base_model.named_parameters())
        shared = {n: p for n, p in tower.named_parameters() if n in found}
        assert len(shared) > 20 and all(torch.equal(found[n], p) for n, p in shared.items())
        assert model(torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)).logits.shape == (1, 3)

    def test_is_the_tower_of_a_gvt(self, saved, tmp_path):
        folder, trainer = saved
        _, text = save_base_models(tmp_path)
        model = GVTForConditionalGeneration.from_vision_text_pretrained(
            str(folder), text, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=10, num_latents=3
        )
        tower = dict(model.model.vision_tower.named_parameters())
        assert all(torch.equal(tower[n], p) for n, p in trainer.student.named_parameters())

    def test_is_the_tower_of_a_llava(self, saved):
        folder, _ = saved
        tower = AutoModel.from_pretrained(folder)
        config = LlavaConfig(vision_config=tower.config, text_config=tiny_llama_config(), image_token_index=5)
        llava = LlavaForConditionalGeneration(config)
        llava.model.vision_tower.load_state_dict(tower.state_dict())
        features = llava.get_image_features(torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)).pooler_output
        assert features[0].shape[-1] == 48 and features[0].shape[-2] == 9

    def test_may_be_of_half_precision(self, saved):
        _, trainer = saved
        folder = trainer.args.output_dir + "/half"
        trainer.args.save_dtype = "bfloat16"
        trainer.save_final(folder)
        trainer.args.save_dtype = None
        assert AutoModel.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
        assert next(trainer.student.parameters()).dtype == torch.float32


def test_a_clip_teacher_speaks_after_its_final_norm(tmp_path):
    teacher = livelier(CLIPVisionModel(tiny_clip_config()))
    with torch.no_grad():
        teacher.post_layernorm.weight.uniform_(0.5, 2.0)
    trainer = distillation_trainer(tmp_path, image_rows(2), teacher=teacher)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = teacher.post_layernorm(teacher(pixels).last_hidden_state)
    assert (
        torch.equal(trainer.teacher_features(pixels), expected) and not trainer.teacher_features(pixels).requires_grad
    )


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset is empty"):
        distillation_trainer(tmp_path, image_rows(4).select([]))
    with pytest.raises(ValueError, match="processing_class is missing"):
        distillation_trainer(tmp_path, image_rows(4), processing_class=None)
    with pytest.raises(ValueError, match="feature layer is 7, but Dinov2Model has 3 hidden states"):
        distillation_trainer(tmp_path, image_rows(4), teacher_feature_layer=7)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    found = []
    for checkpointing in (False, True):
        trainer = distillation_trainer(
            tmp_path, image_rows(4), gradient_checkpointing=checkpointing, drop_path_rate=0.3
        )
        torch.manual_seed(0)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.student.modules())


def test_augmentation_and_masks_are_drawn_anew_in_each_epoch_and_the_same_again(tmp_path):
    collator = distillation_trainer(tmp_path, image_rows(2), mask_ratio=0.4).data_collator
    rows = [{**row, "position": position} for position, row in enumerate(image_rows(2))]
    batches = []
    for epoch in (0, 1, 0):
        collator.epoch.fill_(epoch)
        torch.manual_seed(epoch + len(batches))  # which does not matter
        batches.append(collator(rows))
    for name in ("pixel_values", "masked_patches"):
        first, second, again = (batch[name] for batch in batches)
        assert torch.equal(first, again) and not torch.equal(first, second)
