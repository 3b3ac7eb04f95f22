"""A training that starts from a projection of what its examples say of their images."""

import copy

import pytest
import torch
from transformers import Gemma3TextConfig

from tests.tiny import calls, save_base_models, tiny_llama_config
from tests.trainer.conftest import RESAMPLER
from tests.trainer.tiny_setokim_training import (
    compose_setokim,
    save_setok_and_text,
    setokim_processor,
    task_examples,
    trainer_of,
)
from tests.trainer.tiny_training import largest_difference, moved, parameters, question, questions
from tests.trainer.tiny_visual_modeling import compose_vtlmm
from vistok import GVTForConditionalGeneration, VisualLanguageCollator
from vistok.modeling.projection_alignment import ProjectionAlignment
from vistok.trainer import visual_language_trainer
from vistok.trainer.alignment import align_projection
from vistok.trainer.data_examples import FEATURES

AS_IT_IS = {"learning_rate": 0.0, "max_steps": 1}  # what a step leaves is what it began with


def found_one_by_one(model, processor, examples):
    """The projection of examples that are encoded alone, of images that are read."""
    alignment = ProjectionAlignment(model.get_input_embeddings().weight)
    for example in examples:
        batch = VisualLanguageCollator(processor)([example])
        with torch.no_grad():
            features = model.model.get_image_features(batch["pixel_values"].to(model.dtype))
        tokens = torch.cat([image[kept] for image, kept in zip(features.tokens, features.token_mask)])
        alignment.add(tokens, batch["labels"][batch["labels"] != -100].tolist())
    return alignment.solve()


def test_a_training_starts_from_what_all_its_rows_say(model, processor, trainer_for):
    data = questions(7)
    before = parameters(model)
    expected = found_one_by_one(model, processor, data)
    trainer_for(model, data, alignment_examples=100, **AS_IT_IS).train()
    torch.testing.assert_close(model.model.projector.weight, expected.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.model.projector.bias, expected.bias, atol=1e-5, rtol=1e-4)
    assert moved(model, before) == {"model.projector.weight", "model.projector.bias"}


def test_it_is_drawn_by_seed(model, processor, trainer_for):
    data = questions(12)

    def aligned(**options):
        fresh = copy.deepcopy(model)
        trainer_for(fresh, data, alignment_examples=5, **AS_IT_IS, **options).train()
        return parameters(fresh)

    assert largest_difference(aligned(), aligned()) == 0
    assert largest_difference(aligned(), aligned(seed=1)) > 1e-3
    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(42))[:5].tolist()
    expected = found_one_by_one(model, processor, [data[index] for index in drawn])
    torch.testing.assert_close(aligned()["model.projector.weight"], expected.weight, atol=1e-5, rtol=1e-4)


def test_rows_that_share_images_and_cached_features_count_as_they_are(model, trainer_for, tmp_path):
    data = questions(9, per_image=3)
    options = {"alignment_examples": 100, "conversations_per_row": 3, **AS_IT_IS}
    seen = {}
    for cached in (False, True):
        fresh = copy.deepcopy(model)
        cache = {"cache_features": cached, "feature_cache_dir": str(tmp_path / "features")}
        trainer = trainer_for(fresh, data, **options, **cache)
        found = align_projection(fresh, trainer.train_dataset, trainer._train_collator, 100, 2, seed=0)
        trainer.train()
        torch.testing.assert_close(fresh.model.projector.weight, found.weight)
        seen[cached] = (found.num_examples, parameters(fresh))
    assert seen[True][0] == seen[False][0] == 3
    assert largest_difference(seen[True][1], seen[False][1]) < 1e-4


def test_it_does_not_move_what_training_draws(model, processor, trainer_for):
    drawn = []

    def darker(image):
        drawn.append(torch.rand(()).item())
        return image.point(lambda value: value * drawn[-1])

    collator = VisualLanguageCollator(processor, image_transform=darker)
    trainer = trainer_for(model, questions(6), alignment_examples=100, data_collator=collator)
    before = torch.get_rng_state()
    align_projection(model, trainer.train_dataset, collator, 100, 2, seed=0)
    assert len(drawn) == 6 and torch.equal(torch.get_rng_state(), before)


def test_words_are_what_enters_the_model_where_embeddings_scale_what_they_look_up(tmp_path, trainer_for):
    config = tiny_llama_config(Gemma3TextConfig, vocab_size=340, head_dim=12, sliding_window=6, layer_types=None)
    bases = save_base_models(tmp_path, text_config=config)
    gemma = GVTForConditionalGeneration.from_vision_text_pretrained(*bases, **RESAMPLER)
    weight = gemma.get_input_embeddings().weight.detach()
    words = gemma.get_input_embeddings()(torch.arange(len(weight)))
    assert not torch.allclose(words, weight)
    trainer = trainer_for(gemma, questions(7), alignment_examples=100, **AS_IT_IS)
    trainer.train()
    batch = trainer._train_collator(list(trainer.train_dataset))
    with torch.no_grad():
        tokens = gemma.model.get_image_features(batch["pixel_values"]).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(tokens.mean(0), words.mean(0), atol=1e-4, rtol=0)
    distances = [(rows - rows.mean(0)).square().sum(1).mean().sqrt() for rows in (tokens, words)]
    torch.testing.assert_close(*distances)


def test_what_was_learned_is_not_set_anew(model, trainer_for, monkeypatch):
    aligned = calls(monkeypatch, visual_language_trainer, "align_projection")
    options = {"alignment_examples": 100, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    resumed = copy.deepcopy(model)
    trainer = trainer_for(model, questions(6), **options)
    trainer.train()
    assert len(aligned) == 1
    trainer.train()  # further
    assert len(aligned) == 1
    trainer_for(resumed, questions(6), **options).train("auto")
    trainer_for(resumed, questions(6), **options).train(f"{trainer.args.output_dir}/checkpoint-1")
    assert len(aligned) == 1


def test_a_resumed_run_goes_on_from_its_weights(model, trainer_for):
    options = {"alignment_examples": 100, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    trainer_for(whole, questions(6), **options).train()
    trainer = trainer_for(resumed, questions(6), **options)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
    assert largest_difference(parameters(whole), parameters(resumed)) < 1e-6


def test_images_and_masks_that_are_written_are_not_what_text_is_about(tmp_path):
    bases = save_setok_and_text(tmp_path / "bases")
    processor, model = setokim_processor(bases), compose_setokim(bases)
    data = task_examples(20, (None, "generate", "segment", "edit", None))
    about = [row for row in data if row["task"] is None and row["images"]]
    assert 1 < len(about) < len(data)
    expected = found_one_by_one(model, processor, about)
    trainer = trainer_of(model, processor, tmp_path / "run", "pretraining", data, alignment_examples=100, **AS_IT_IS)
    trainer.train()
    weight = model.model.input_projection.weight
    torch.testing.assert_close(weight, expected.weight.double(), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_aligned_is_an_error_before_anything_is_trained(model, composed, trainer_for, base_models):
    data = questions(4)
    with pytest.raises(ValueError, match="alignment_examples is -1"):
        trainer_for(model, data, alignment_examples=-1)
    with pytest.raises(ValueError, match="alignment_examples needs data of known size"):
        trainer_for(model, data.to_iterable_dataset(), alignment_examples=4)
    for mode in ("frozen", "lora"):
        trainable = {"vision": "frozen", "resampler": mode, "llm": "full"}
        with pytest.raises(ValueError, match="sets the projection of visual tokens anew"):
            trainer_for(copy.deepcopy(composed), data, alignment_examples=4, trainable=trainable)
    of_text = type(data).from_list([question(index) for index in range(4)], features=FEATURES)
    trainer = trainer_for(model, of_text, alignment_examples=4)
    before = parameters(model)
    with pytest.raises(ValueError, match="no example has an image and an answer"):
        trainer.train()
    assert not moved(model, before)


def test_a_model_without_a_projection_is_an_error(base_models, trainer_for):
    trainable = {"adapter": "full"}
    with pytest.raises(ValueError, match="VTLMMForCausalLM has no projection"):
        trainer_for(compose_vtlmm(base_models), questions(4), alignment_examples=4, trainable=trainable)
