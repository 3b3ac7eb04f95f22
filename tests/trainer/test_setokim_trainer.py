"""Training of Setokim: what stages train, what losses are means over, masks, saving, resuming, and bad input."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from tests.tiny_setokim import MAX_TOKENS, tiny_setok_config
from tests.trainer.tiny_setokim_training import (
    ALL_FEATURES,
    box_mask,
    boxed_image,
    compose_setokim,
    gradients_of_step,
    save_setok_and_text,
    setokim_processor,
    task_example,
    task_examples,
    trainer_of,
)
from tests.trainer.tiny_training import largest_difference, moved, parameters, questions
from vistok import SetokimForConditionalGeneration, SetokimModel, SetokimTrainingConfig
from vistok.configuration.shipped import here_or_shipped, shipped_path
from vistok.modeling.mask_tokens import merged_mask_tokens, nearest_cluster_tokens
from vistok.modeling.patch_clusters import PatchClusters
from vistok.modeling.trained_weights import read_trained_weights
from vistok.processing.images import BadSampleError
from vistok.trainer import model_recipe
from vistok.trainer.image_answers import mask_image
from vistok.trainer.recipe import load_recipe
from vistok.trainer.recipe_chain import check_starts, load_recipes
from vistok.trainer.run_lineage import described_run, weights_digest
from vistok.trainer.setokim_batches import are_written, count_items, take_masks, with_visual_tokens

STAGES = ("pretraining", "instruction")
LOSSES = {"loss_lm", "loss_visual", "loss_length", "loss_mask_bce", "loss_mask_dice"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return save_setok_and_text(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def processor(bases):
    return setokim_processor(bases)


@pytest.fixture(scope="module")
def composed(bases):
    return compose_setokim(bases)


@pytest.fixture
def trainer_for(composed, processor, tmp_path):
    def make(stage="instruction", *data, model=None, **options):
        model = copy.deepcopy(composed) if model is None else model
        torch.manual_seed(3)  # of the adapters
        return trainer_of(model, processor, tmp_path / "run", stage, *data, **options)

    return make


def batch_of(trainer, examples):
    return trainer._with_visual_tokens(trainer.data_collator(list(examples)))


class TestBatches:
    def test_placeholders_are_labels_where_an_image_is_written_and_nowhere_else(self, trainer_for, processor):
        trainer = trainer_for("instruction", task_examples(6))
        batch = trainer.data_collator(
            [task_example(i, task) for i, task in enumerate(("edit", "generate", "segment"))]
        )
        placeholder = processor.image_token_id
        assert are_written(batch, placeholder, MAX_TOKENS).tolist() == [False, True, True, False, True]
        labels = batch["labels"][batch["input_ids"] == placeholder].view(-1, MAX_TOKENS)
        assert {tuple(set(image.tolist())) for image in labels} == {(-100,), (placeholder,)}
        starts = batch["labels"][batch["input_ids"] == processor.image_start_token_id]
        assert (starts != -100).tolist() == [False, True, True, False, True]  # [Img] and [/Img] of answers are text
        assert len(batch["pixel_values"]) == 4 and batch["mask_places"].tolist() == [4]
        assert batch["mask_sources"].tolist() == [3]

    def test_what_losses_are_means_over_is_counted_of_real_tokens(self, trainer_for, processor):
        trainer = trainer_for("instruction", task_examples(6))
        examples = list(task_examples(6))
        batch = batch_of(trainer, examples)
        counts = [len(tokens) for tokens in batch["visual_tokens"]]
        written = are_written(batch, processor.image_token_id, MAX_TOKENS).tolist()
        assert max(counts) <= MAX_TOKENS and len(set(counts)) > 1
        num_text, num_written, num_masks, num_tokens = count_items(batch, processor.image_token_id, MAX_TOKENS)
        assert num_written == sum(count for count, is_written in zip(counts, written) if is_written)
        assert num_masks == 2
        text = (batch["labels"] != -100) & (batch["input_ids"] != processor.image_token_id)
        assert num_text == int(text.sum())
        assert num_tokens == int(batch["attention_mask"].sum()) - MAX_TOKENS * len(counts) + sum(counts)

    def test_the_token_of_a_mask_that_is_a_cluster_is_the_token_of_the_cluster(self, bases, trainer_for):
        trainer = trainer_for("instruction", task_examples(3))
        core = trainer.model.model
        batch = trainer._prepare_inputs(trainer.data_collator([task_example(2, "segment")]))
        features = core.get_image_features(batch["pixel_values"].double())
        clusters = PatchClusters(
            cluster_masks=features.cluster_masks, assignment=features.assignment,
            mask=features.token_mask[:, : features.cluster_masks.shape[1]],
        )  # fmt: skip
        for number in range(int(clusters.mask.sum())):
            coverage = clusters.cluster_masks[:, number]
            merged = merged_mask_tokens(core.visual_tokenizer, features.patch_features, clusters, (6, 6), coverage)
            torch.testing.assert_close(merged[0], features.tokens[0, number])
            nearest = nearest_cluster_tokens(
                features.tokens[:, : clusters.mask.shape[1]], clusters.cluster_masks, coverage
            )
            assert torch.equal(nearest[0], features.tokens[0, number])
        thin = torch.zeros(1, 36, dtype=torch.float64)
        thin[0, 7] = 0.2
        assert (
            merged_mask_tokens(core.visual_tokenizer, features.patch_features, clusters, (6, 6), thin).isfinite().all()
        )
        with pytest.raises(ValueError, match=r"Masks \[0\] are empty"):
            merged_mask_tokens(core.visual_tokenizer, features.patch_features, clusters, (6, 6), 0 * thin)

    def test_a_mask_is_found_again_among_what_the_batch_writes(self, trainer_for):
        trainer = trainer_for("instruction", task_examples(6))
        batch = batch_of(trainer, task_examples(6))
        tokens = list(batch["visual_tokens"])
        written = are_written(batch, *trainer._placeholders).tolist()
        of_batch = torch.cat([image for image, is_written in zip(tokens, written) if is_written])
        masks = take_masks(batch, *trainer._placeholders)
        assert [tokens[place].shape[0] for place in masks.places.tolist()] == [1, 1]
        for row, place in zip(masks.rows.tolist(), masks.places.tolist()):
            assert torch.equal(of_batch[row], tokens[place][0])
        assert masks.coverage.shape == (2, 12, 12)
        covered = np.kron(masks.coverage[0].numpy(), np.ones((2, 2)))  # two pixels of the image to one of the decoder
        assert np.array_equal(covered, masks.pixels[0].numpy().astype(float))


class TestStages:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage_trains_its_parts_and_no_gradient_reaches_another(self, bases, trainer_for, stage):
        trainer = trainer_for(stage, task_examples(6), per_device_train_batch_size=6, max_steps=1)
        before = parameters(trainer.model)
        gradients = gradients_of_step(trainer)
        assert moved(trainer.model, before) == set(gradients)
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
        logged = trainer.state.log_history[0]
        assert set(logged) >= LOSSES
        assert 1 <= logged["tokens_min"] <= logged["tokens_mean"] <= logged["tokens_max"] <= MAX_TOKENS
        projections = {name for name in before if "_projection." in name and not name.startswith("model.setok")}
        assert len(projections) == 4 and projections <= set(gradients)
        others = set(gradients) - projections
        if stage == "pretraining":
            expected = {name for name in before if name.startswith(("model.language_model.", "lm_head."))}
        else:
            expected = {"model.token_rows.weight", "head_rows.weight"} | {name for name in before if ".lora_" in name}
        assert others == expected

    @pytest.mark.parametrize("stage", STAGES)
    def test_accumulated_batches_are_as_one(self, bases, trainer_for, stage):
        found = []
        for size, steps in ((6, 1), (2, 3), (1, 6)):
            trainer = trainer_for(
                stage, task_examples(6), per_device_train_batch_size=size, gradient_accumulation_steps=steps,
                max_steps=1, visual_loss_weight=0.7, length_loss_weight=0.4, mask_dice_weight=0.3,
            )  # fmt: skip
            found.append((gradients_of_step(trainer), trainer.state.log_history[0]))
        (one, logged), *others = found
        for gradients, entry in others:
            assert largest_difference(one, gradients) < 1e-9
            for name in ("loss", "tokens_mean", *LOSSES):
                assert entry[name] == pytest.approx(logged[name], rel=1e-6), name
        weights = {"loss_lm": 1, "loss_visual": 0.7, "loss_length": 0.4, "loss_mask_bce": 1, "loss_mask_dice": 0.3}
        assert logged["loss"] == pytest.approx(
            sum(weight * logged[name] for name, weight in weights.items()), rel=1e-5
        )

    def test_an_evaluation_is_that_of_all_rows_together(self, trainer_for):
        found = []
        for size in (6, 4, 1):
            trainer = trainer_for("instruction", task_examples(6), task_examples(6), per_device_eval_batch_size=size)
            found.append(trainer.evaluate())
        metrics = found[0]
        assert {f"eval_{name}" for name in LOSSES} | {"eval_answer_accuracy", "eval_ciou", "eval_giou"} <= set(metrics)
        assert 0 <= metrics["eval_ciou"] <= 1 and metrics["eval_loss"] == pytest.approx(
            sum(metrics[f"eval_{name}"] for name in LOSSES)
        )
        for other in found[1:]:
            for name, value in metrics.items():
                if "loss" in name or "iou" in name or "accuracy" in name:
                    assert other[name] == pytest.approx(value, rel=1e-6), name

    def test_teacher_forced_masks_are_those_of_generation(self, bases, trainer_for, processor):
        example = task_example(2, "segment")
        data = Dataset.from_list([example], features=ALL_FEATURES)
        trainer = trainer_for("instruction", data, data)
        metrics = trainer.evaluate()
        model = trainer.model.eval()
        mask = box_mask(left=8)
        prompt = processor.task_prompt("segment", "the cat")
        inputs = processor(text=[prompt], images=[_read(example)], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].double()
        written = model.segment(**inputs, sizes=[mask.shape]).masks[0].numpy()
        assert (written & mask).sum() / (written | mask).sum() == pytest.approx(metrics["eval_ciou"])
        assert "eval_answer_accuracy" not in metrics

    def test_a_mask_decoder_that_is_trained_waits_for_masks(self, trainer_for):
        options = {"trainable": {"mask_decoder": "full"}, "max_steps": 1}
        gradients = gradients_of_step(trainer_for("instruction", task_examples(2, (None,)), **options))
        decoder = [gradient for name, gradient in gradients.items() if ".mask_decoder." in name]
        assert decoder and not any(gradient.any() for gradient in decoder)
        gradients = gradients_of_step(trainer_for("instruction", task_examples(2, ("segment",)), **options))
        assert any(gradient.any() for name, gradient in gradients.items() if ".mask_decoder." in name)

    def test_images_are_drawn_of_what_was_just_trained(self, trainer_for, tmp_path):
        options = {"sample_steps": 2, "num_samples": 1, "sample_inference_steps": 2}
        trainer = trainer_for("instruction", task_examples(6), **options)
        trainer.train()
        picture = Image.open(tmp_path / "run" / "samples" / "step-000002.png")
        assert picture.height > 3 * 256 and picture.width > 4 * 256


def _read(example):
    from vistok.processing.images import load_image

    return load_image(example["images"][0])


class TestTokenRows:
    @pytest.mark.parametrize("tied", [False, True])
    def test_new_rows_are_trained_under_lora_and_saved_alone(self, tmp_path, tied):
        bases = save_setok_and_text(tmp_path, tied)
        processor = setokim_processor(bases)
        trainer = trainer_of(compose_setokim(bases), processor, tmp_path / "run", "instruction", task_examples(6))
        model, embeddings = trainer.model, trainer.model.get_input_embeddings().weight.detach().clone()
        trainer.train()
        assert torch.equal(model.get_input_embeddings().weight, embeddings)
        ids = list(model.model.token_rows.token_ids)
        assert not torch.equal(model.model.token_rows.weight, embeddings[ids])
        assert (model.head_rows is None) == tied
        trainer.save_final(tmp_path / "final")
        saved = read_trained_weights(str(tmp_path / "final"))
        assert not any("embed_tokens" in name or name == "lm_head.weight" for name in saved)
        assert saved["model.token_rows.weight"].shape == (3, 48)
        batch = batch_of(trainer, task_examples(6))
        take_masks(batch, *trainer._placeholders)
        batch.pop("mask_places", None)
        expected = model.eval()(**batch)
        loaded = SetokimForConditionalGeneration.from_pretrained(tmp_path / "final", dtype=torch.float64).eval()
        found = loaded(**batch)
        torch.testing.assert_close(found.logits, expected.logits)
        assert found.loss.item() == pytest.approx(expected.loss.item())
        whole = tmp_path / "whole"
        loaded.save_pretrained(whole)  # adapters and rows are merged
        ordinary = SetokimForConditionalGeneration.from_pretrained(whole, dtype=torch.float64).eval()
        assert ordinary.head_rows is None and not ordinary.config.trained_token_rows
        torch.testing.assert_close(ordinary(**batch).logits, expected.logits)
        core = SetokimModel.from_pretrained(whole, dtype=torch.float64)
        assert torch.equal(core.get_input_embeddings().weight[ids], model.model.token_rows.weight)

    def test_stage_three_goes_on_with_what_stage_two_left(self, bases, processor, tmp_path):
        lora = {"trainable": {"llm": "lora"}, "lora": {"r": 2, "init_lora_weights": False}}
        first = trainer_of(compose_setokim(bases), processor, tmp_path / "2", "pretraining", task_examples(4), **lora)
        first.train()
        first.save_final(tmp_path / "final")
        model = SetokimForConditionalGeneration.from_pretrained(tmp_path / "final", dtype=torch.float64)
        rows = first.model.model.token_rows.weight.detach()
        assert torch.equal(model.model.token_rows.weight, rows)
        second = trainer_of(model, processor, tmp_path / "3", "instruction", task_examples(4), lora=None)
        assert second.args.lora is None and model.config.lora_config["r"] == 2
        second.train()
        assert not torch.equal(model.model.token_rows.weight, rows)

    def test_a_whole_language_model_takes_its_rows_back(self, bases, processor, tmp_path):
        model = compose_setokim(bases)
        model.add_token_rows()
        with torch.no_grad():
            model.model.token_rows.weight += 0.1
            model.head_rows.weight -= 0.1
        inputs = {"input_ids": torch.tensor([[5, 341, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
        expected = model(**inputs).logits
        trainer = trainer_of(model, processor, tmp_path, "pretraining", task_examples(2))
        assert trainer.model.model.token_rows is None and not model.config.trained_token_rows
        torch.testing.assert_close(trainer.model.eval()(**inputs).logits, expected)


def test_a_resumed_run_ends_as_it_would_have_with_cached_features(bases, processor, tmp_path):
    options = {"cache_features": True, "feature_cache_dir": str(tmp_path / "cache"), "max_steps": 4, "save_steps": 2}
    options |= {"save_strategy": "steps", "optim": "adamw_torch", "logging_steps": 4, "learning_rate": 1e-3}
    data = task_examples(8)
    whole, resumed = (
        trainer_of(compose_setokim(bases).float(), processor, tmp_path / "run", "instruction", data, data, **options)
        for _ in range(2)
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(parameter, other), name
    for name in ("loss", "tokens_mean", *LOSSES):
        assert resumed.state.log_history[0][name] == pytest.approx(whole.state.log_history[0][name], rel=1e-12), name


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stage": "alignment"}, "unknown stage"),
            ({"trainable": {"merger": "full"}}, "SeTok is trained in stage I"),
            ({"trainable": {"token_rows": "full"}}, "token_rows are a part of llm"),
            ({"segmentation_target": "box"}, "unknown segmentation_target"),
            ({"mask_dice_weight": -1.0}, "mask_dice_weight is -1.0"),
            ({"sample_steps": -1}, "sample_steps is -1"),
            ({"augment": True}, "augment would move images"),
        ],
    )
    def test_wrong_arguments_are_named(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            SetokimTrainingConfig(output_dir=str(tmp_path), use_cpu=True, **options)

    def test_wrong_masks_and_answers_are_named(self, trainer_for):
        collator = trainer_for("instruction", task_examples(3)).data_collator
        mask = box_mask()
        small, empty = mask_image(mask[:20], "small"), mask_image(np.zeros_like(mask), "empty")
        example = task_example(2, "segment")
        shown = boxed_image(0, mask)
        with pytest.raises(BadSampleError, match=r"mask has 20 × 24 pixels .* and its image 24 × 24"):
            collator([{**example, "images": [shown, small]}])
        with pytest.raises(BadSampleError, match="mask is empty"):
            collator([{**example, "images": [shown, empty]}])
        with pytest.raises(BadSampleError, match="no answer ends in an image"):
            collator([{**task_example(1, None), "task": "edit"}])
        with pytest.raises(BadSampleError, match="task 'paint' is unknown"):
            collator([{**task_example(1, None), "task": "paint"}])
        with pytest.raises(BadSampleError, match="got one image"):
            collator([{**task_example(1, "generate"), "task": "segment"}])

    def test_rows_are_not_shared_where_images_are_written(self, trainer_for):
        with pytest.raises(ValueError, match="images that are to be written"):
            trainer_for("instruction", task_examples(6), conversations_per_row=2)
        trainer_for("instruction", task_examples(4, (None,)), conversations_per_row=2, max_steps=1).train()

    def test_a_new_mask_decoder_is_not_learned_from(self, bases, tmp_path, trainer_for):
        tower = tmp_path / "vision"
        save_setok_and_text(tmp_path)
        config = tiny_setok_config().to_dict()["vision_config"]
        config.pop("vision_config")
        model = compose_setokim((str(tower), bases[1]), max_tokens=MAX_TOKENS, output_size=20)
        with pytest.raises(ValueError, match="mask decoder is new"):
            trainer_for("instruction", task_examples(3), model=model)
        trainer_for("instruction", task_examples(3), model=model, mask_bce_weight=0.0, mask_dice_weight=0.0)

    def test_other_models_are_refused(self, processor, tmp_path):
        from tests.tiny import tiny_gvt

        with pytest.raises(ValueError, match="GVTForConditionalGeneration writes no images"):
            trainer_of(tiny_gvt(), processor, tmp_path, "instruction", questions(2))


def test_with_visual_tokens_leaves_batches_of_text_alone(trainer_for):
    trainer = trainer_for("instruction", task_examples(2))
    batch = trainer.data_collator([task_example(0, None)])
    assert with_visual_tokens(trainer.model.model, batch, "mask").keys() == batch.keys()


class TestRecipes:
    def test_a_setokim_starts_from_the_setok_before_it(self, tmp_path):
        names = ("1-reading", "2-pretraining", "3-instruction")
        paths = [here_or_shipped(f"recipes/setokim/demo/{name}.yaml") for name in names]
        paths = [here_or_shipped("recipes/setok/demo/1d-details.yaml"), *paths]
        setok, first, second, third = load_recipes(paths, ["--1.training.output_dir", str(tmp_path / "setok")])
        assert first.model.vision == setok.training["output_dir"] and first.model.checkpoint is None
        assert first.model.text == "vistok:smollm2-135m"
        assert second.model.checkpoint == first.training["output_dir"]
        assert third.model.checkpoint == second.training["output_dir"]
        with pytest.raises(FileNotFoundError, match="where there is no trained model"):
            check_starts([first])
        check_starts([load_recipes(paths[1:2], [])[0]])  # alone, from the SeTok that ships
        check_starts([setok_that_is_new(setok), first, second, third])

    def test_what_ships_is_a_start_whose_weights_are_recorded(self, tmp_path, monkeypatch):
        path = here_or_shipped("recipes/setokim/demo/1-reading.yaml")
        recipe = load_recipe(path, ["--model.vision", "vistok:gvt-demo"])
        shipped = shipped_path("checkpoints/gvt-demo")
        assert recipe.model.starts_from == str(shipped)
        assert described_run(recipe)["started_from"] == weights_digest(shipped) is not None
        check_starts([recipe])
        (tmp_path / "model.safetensors").write_bytes(b"trained anew")
        monkeypatch.setattr(model_recipe, "shipped_checkpoint", lambda name: tmp_path)
        assert described_run(recipe)["started_from"] not in (None, weights_digest(shipped))

    @pytest.mark.parametrize("vision", ["vistok:dinov2-small", "vistok:gone", "org/setok"])
    def test_what_is_elsewhere_is_no_folder_to_start_from(self, vision):
        path = here_or_shipped("recipes/setokim/demo/1-reading.yaml")
        assert load_recipe(path, ["--model.vision", vision]).model.starts_from is None

    @pytest.mark.parametrize(
        "name", ["2-pretraining", "3-instruction", "demo/1-reading", "demo/2-pretraining", "demo/3-instruction"]
    )
    def test_recipes_say_what_their_stage_trains(self, name):
        recipe = load_recipe(here_or_shipped(f"recipes/setokim/{name}.yaml"))
        stage = recipe.training["stage"]
        assert recipe.trainable["projections"] == "full" and recipe.trainable["vision"] == "frozen"
        whole = stage == "pretraining" and "demo" not in name
        assert recipe.trainable["llm"] == ("full" if whole else "lora")
        assert recipe.trainable["token_rows"] == ("frozen" if whole else "full")


def setok_that_is_new(recipe):
    recipe.model.checkpoint = None
    return recipe
