"""The trainer computes what it should: one loss whatever the batches, rows, caches and precision it is computed in."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from tests.tiny import save_base_models, tiny_dinov2_config, tiny_t5_config
from tests.trainer.conftest import RESAMPLER
from tests.trainer.tiny_training import largest_difference, losses, parameters, question, questions
from vistok import (
    GVTForConditionalGeneration,
    GVTProcessor,
    VisualLanguageCollator,
    VisualLanguageConfig,
    VisualLanguageTrainer,
)
from vistok.processing.images import load_example_images
from vistok.trainer.answer_accuracy import answer_numbers, right_answers
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.visual_language_trainer import DivergedError

ALL = {"vision": "frozen", "resampler": "full", "llm": "full"}
SGD = {"optim": "sgd", "max_grad_norm": 0.0}  # a step that is the gradient, and nothing else


def trained(model, trainer_for, *data, **options):
    """A copy of the model after a training, and its losses."""
    model = copy.deepcopy(model)
    trainer = trainer_for(model, *data, **options)
    trainer.train()
    return parameters(model), losses(trainer)


def token_losses(model, processor, examples) -> list[float]:
    """Loss of every answer token, computed one example at a time from full logits."""
    collected = []
    for example in examples:
        batch = VisualLanguageCollator(processor)([example])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[0, :-1]
        collected += nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100].tolist()
    return collected


def test_the_loss_is_the_mean_over_the_answer_tokens_of_the_batch(model, processor, trainer_for):
    data = questions(4)
    expected = token_losses(model, processor, data)
    trainer = trainer_for(model, data, per_device_train_batch_size=4, max_steps=1)
    trainer.train()
    assert losses(trainer) == pytest.approx([np.mean(expected)], abs=1e-5)


def test_accumulated_gradients_are_those_of_the_larger_batch(model, processor, trainer_for):
    data = questions(8)
    weights, large = trained(model, trainer_for, data, per_device_train_batch_size=4, **SGD)
    accumulated, small = trained(
        model, trainer_for, data, per_device_train_batch_size=1, gradient_accumulation_steps=4, **SGD
    )
    assert small == pytest.approx(large, abs=1e-5)
    assert largest_difference(accumulated, weights) < 1e-5
    # A mean of the four means would be another number.
    means = [np.mean(token_losses(model, processor, [example])) for example in data]
    assert abs(np.mean(means) - np.mean(token_losses(model, processor, data))) > 1e-3


def test_a_last_incomplete_accumulation_is_weighted_by_its_own_tokens(model, trainer_for):
    data = questions(6)  # a step of four, and one of two
    weights, large = trained(model, trainer_for, data, per_device_train_batch_size=4, **SGD)
    accumulated, small = trained(
        model, trainer_for, data, per_device_train_batch_size=2, gradient_accumulation_steps=2, **SGD
    )
    assert small == pytest.approx(large, abs=1e-5)
    assert largest_difference(accumulated, weights) < 1e-5


@pytest.mark.parametrize("template", ["question-answer", "chatml"])
@pytest.mark.parametrize("image_first", [True, False])
def test_conversations_that_share_a_row_train_as_in_rows_of_their_own(
    model, base_models, trainer_for, template, image_first
):
    data = questions(12, per_image=3)
    if not image_first:
        data = data.map(lambda example: {"messages": [turned(example["messages"][0]), *example["messages"][1:]]})
    processor = GVTProcessor.from_vision_text_pretrained(
        *base_models, num_image_tokens=RESAMPLER["num_latents"], chat_template=template
    )
    collator = VisualLanguageCollator(processor)
    options = {"max_steps": 3, "data_collator": collator, "trainable": ALL, **SGD}
    weights, separate = trained(model, trainer_for, data, per_device_train_batch_size=12, **options)
    packed, shared = trained(
        model, trainer_for, data, per_device_train_batch_size=4, conversations_per_row=3, **options
    )
    assert shared == pytest.approx(separate, abs=1e-5)
    assert largest_difference(packed, weights) < 1e-4


def turned(message: dict) -> dict:
    """The words before the image."""
    return {**message, "content": message["content"][::-1]}


@pytest.mark.parametrize("conversations_per_row", [1, 3])
def test_cached_features_give_the_same_training(base_models, processor, trainer_for, tmp_path, conversations_per_row):
    # A tower with dropout, which a frozen one is not to use.
    vision, text = save_base_models(tmp_path, tiny_dinov2_config(hidden_dropout_prob=0.5, drop_path_rate=0.3))
    model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, **RESAMPLER)
    options = {"max_steps": 6, "conversations_per_row": conversations_per_row}
    weights, computed = trained(model, trainer_for, questions(8, per_image=2), **options)
    options |= {"cache_features": True, "feature_cache_dir": str(tmp_path / "features")}
    from_cache, cached = trained(model, trainer_for, questions(8, per_image=2), **options)
    assert cached == pytest.approx(computed, abs=1e-6)
    assert largest_difference(from_cache, weights) < 1e-4
    assert computed[0] != pytest.approx(computed[-1], abs=1e-2)  # something was learned


def test_cached_features_are_used_in_place_of_the_tower(model, trainer_for, tmp_path):
    trainer = trainer_for(
        model, questions(4), questions(2), cache_features=True, feature_cache_dir=str(tmp_path / "features")
    )
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.fill_(torch.nan)
    trainer.train()
    assert np.isfinite([*losses(trainer), trainer.evaluate()["eval_loss"]]).all()


def test_bfloat16_trains_float32_weights_to_nearly_the_same(model, trainer_for, tmp_path):
    _, exact = trained(model, trainer_for, questions(4), max_steps=4)
    rounded, autocast = trained(model, trainer_for, questions(4), max_steps=4, bf16=True)
    assert autocast == pytest.approx(exact, rel=0.03)
    assert autocast != pytest.approx(exact, rel=1e-6)
    assert {parameter.dtype for parameter in rounded.values()} == {torch.float32}
    options = {"cache_features": True, "feature_cache_dir": str(tmp_path / "features"), "bf16": True}
    _, cached = trained(model, trainer_for, questions(4), max_steps=4, **options)
    assert cached == pytest.approx(autocast, rel=1e-3)
    trainer_for(model, questions(4), **{**options, "bf16": False})  # computes its own, exact features
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_a_frozen_bfloat16_model_is_trained_in_float32(base_models, trainer_for):
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, dtype=torch.bfloat16, **RESAMPLER)
    trainer = trainer_for(model, questions(4), max_steps=8)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert model.model.projector.weight.dtype == torch.float32


@pytest.mark.parametrize("trainable", [None, {"vision": "lora", "resampler": "full", "llm": "lora"}], ids=str)
def test_gradient_checkpointing_changes_nothing_but_memory(model, trainer_for, trainable):
    options = {"trainable": trainable} if trainable else {}
    weights, plain = trained(model, trainer_for, questions(4), **options, **SGD)
    torch.manual_seed(0)
    checkpointed, twice = trained(model, trainer_for, questions(4), **options, **SGD, gradient_checkpointing=True)
    assert twice == pytest.approx(plain, abs=1e-6)
    assert largest_difference(checkpointed, weights) < 1e-5


def test_batches_with_and_without_images_and_with_several_train_together(model, processor, trainer_for):
    pair = question(2, 2)
    pair["images"] += question(3, 3)["images"]
    pair["messages"][0]["content"].insert(0, {"type": "image", "text": None})
    data = Dataset.from_list([question(0), question(1, 1), pair], features=FEATURES)
    expected = np.mean(token_losses(model, processor, data))
    trainer = trainer_for(model, data, per_device_train_batch_size=3, max_steps=2)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, abs=1e-5)


# Evaluation


def greedy_answers(model, processor, examples) -> list[bool]:
    """Whether generate() writes each answer, to its end."""
    right = []
    for example in examples:
        batch = VisualLanguageCollator(processor)([example])
        labels = batch["labels"][0]
        start = int((labels != -100).nonzero()[0])
        answer = labels[labels != -100]
        with torch.no_grad():
            written = model.generate(
                input_ids=batch["input_ids"][:, :start],
                attention_mask=batch["attention_mask"][:, :start],
                pixel_values=batch["pixel_values"],
                max_new_tokens=len(answer),
                do_sample=False,
            )
        right.append(written[0, start:].tolist() == answer.tolist())
    return right


def test_answer_accuracy_is_the_share_of_exact_greedy_answers(model, processor, trainer_for):
    known, unknown = questions(6), Dataset.from_list([question(i, i + 20) for i in range(6, 12)], features=FEATURES)
    data = concatenate_datasets([known, unknown])
    trainer = trainer_for(model, known, data, trainable=ALL, max_steps=25, per_device_train_batch_size=6)
    trainer.train()
    model.eval()
    right = greedy_answers(model, processor, data)
    assert 3 <= sum(right) < len(right)
    assert trainer.evaluate()["eval_answer_accuracy"] == pytest.approx(np.mean(right))
    # The placeholder is never written, however probable: here it is more so than the first token of an answer.
    with torch.no_grad():
        first = processor.tokenizer(" " + known[1]["messages"][1]["content"][0]["text"])["input_ids"][0]
        model.lm_head.weight[processor.image_token_id] = 1.5 * model.lm_head.weight[first]
    assert trainer.evaluate()["eval_answer_accuracy"] == pytest.approx(np.mean(greedy_answers(model, processor, data)))


@pytest.mark.parametrize("options", [{"per_device_eval_batch_size": 5}, {"conversations_per_row": 4}], ids=str)
def test_metrics_do_not_depend_on_batches_or_rows(model, processor, trainer_for, options):
    data = questions(8, per_image=4)
    expected = trainer_for(copy.deepcopy(model), None, data, per_device_eval_batch_size=1).evaluate()
    found = trainer_for(copy.deepcopy(model), None, data, **options).evaluate()
    assert expected["eval_loss"] == pytest.approx(np.mean(token_losses(model, processor, data)), abs=1e-5)
    for name in ("eval_loss", "eval_answer_accuracy"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)


def test_evaluating_on_the_way_changes_nothing(model, trainer_for):
    options = {"max_steps": 5, "trainable": {**ALL, "llm": "lora"}, "lora": {"lora_dropout": 0.3}}
    torch.manual_seed(1)
    weights, expected = trained(model, trainer_for, questions(4), **options)
    torch.manual_seed(1)
    named = {"seen": questions(2), "unseen": questions(5)}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    evaluated, found = trained(model, trainer_for, questions(4), named, **options)
    assert found == pytest.approx(expected, abs=1e-6)
    assert largest_difference(evaluated, weights) < 1e-4


def test_several_evaluation_sets_are_reported_by_name(model, trainer_for):
    metrics = trainer_for(model, None, {"seen": questions(2), "unseen": questions(3)}).evaluate()
    for name in ("seen", "unseen"):
        assert 0 <= metrics[f"eval_{name}_answer_accuracy"] <= 1
        assert metrics[f"eval_{name}_loss"] > 0


def test_answers_are_numbered_and_judged_one_by_one():
    labels = torch.tensor([[-100, 5, 6, -100, 7, -100], [-100, -100, 8, 9, -100, -100]])
    numbers = answer_numbers(labels)
    assert numbers.tolist() == [[-1, 0, 0, -1, 1, -1], [-1, -1, 0, 0, -1, -1]]
    predictions = torch.tensor([[1, 5, 0, 1, 7, 1], [1, 1, 8, 9, 1, 1]])
    assert right_answers(predictions, labels, numbers).tolist() == [[0, 1], [1, -100]]


def test_an_encoder_decoder_model_trains_and_is_judged_by_its_greedy_answers(trainer_for, tmp_path):
    vision, text = save_base_models(tmp_path, text_config=tiny_t5_config(vocab_size=340), add_eos=True)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(vision, text, **RESAMPLER)
    processor = GVTProcessor.from_vision_text_pretrained(vision, text, num_image_tokens=RESAMPLER["num_latents"])
    data = questions(4)
    collator = VisualLanguageCollator(processor, is_encoder_decoder=True)
    trainer = trainer_for(
        model, data, data, data_collator=collator, trainable=ALL, max_steps=20, per_device_train_batch_size=4
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
    model.eval()
    right = []
    for example in data:
        batch = collator([example])
        answer = batch.pop("labels")[0]
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=len(answer), do_sample=False)
        right.append(written[0, 1:].tolist() == answer.tolist())
    assert trainer.evaluate()["eval_answer_accuracy"] == pytest.approx(np.mean(right))


# What goes in


def seen(trainer) -> list[str]:
    """The examples of an epoch, in the order in which they are trained on."""
    order: list[str] = []
    trainer.data_collator = lambda examples: order.extend(example["id"] for example in examples) or {}
    for _ in trainer.get_train_dataloader():
        pass
    return order


def test_the_seed_alone_decides_on_the_order_of_examples(model, trainer_for):
    first = seen(trainer_for(model, questions(12), seed=3))
    torch.manual_seed(99)  # something else was drawn in between
    assert seen(trainer_for(model, questions(12), seed=3)) == first
    assert sorted(first) == sorted(f"q{i}" for i in range(12)) != first
    assert seen(trainer_for(model, questions(12), seed=4)) != first
    trainer = trainer_for(model, questions(12), seed=3)
    torch.manual_seed(99)
    assert seen(trainer) == first


def test_images_are_augmented_anew_each_epoch_in_training_and_never_in_evaluation(model, trainer_for):
    data = Dataset.from_list([question(0, 0)], features=FEATURES)
    trainer = trainer_for(model, data, data, augment=True)
    collator = trainer.data_collator
    (row,) = trainer.train_dataset
    epochs = []
    for epoch in (0, 1, 0):
        collator.epoch.fill_(epoch)
        torch.manual_seed(epoch + 5)
        epochs.append(collator([row])["pixel_values"])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    image = load_example_images(data[0])
    plain = trainer.processing_class.image_processor(image, return_tensors="pt")["pixel_values"]
    for loader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(data)):
        assert torch.equal(next(iter(loader))["pixel_values"], plain)
    assert trainer.data_collator is collator
    trainer.train()
    assert int(collator.epoch) == trainer.args.max_steps - 1  # an epoch is one step here


def test_streams_are_passed_over_until_the_last_step(model, trainer_for):
    stream = questions(3).to_iterable_dataset()
    trainer = trainer_for(model, stream, max_steps=6, augment=True)
    trainer.train()
    assert trainer.state.global_step == 6 and len(losses(trainer)) == 6


@pytest.mark.parametrize(
    ("train", "evaluate", "options", "message"),
    [
        (questions(1).select([]), None, {}, "train_dataset is empty"),
        (questions(1), questions(1).select([]), {}, "eval_dataset is empty"),
        (questions(1), {"good": questions(1), "bad": questions(1).select([])}, {}, "bad is empty"),
        (
            questions(1).to_iterable_dataset(),
            None,
            {"cache_features": True},
            "cache_features needs data of known size",
        ),
        (
            questions(1),
            questions(1).to_iterable_dataset(),
            {"conversations_per_row": 2},
            "load eval_dataset with stre",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_at_once(model, trainer_for, train, evaluate, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(model, train, evaluate, **options)


def test_an_encoder_decoder_model_shares_no_rows(model, trainer_for):
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="set conversations_per_row to 1"):
        trainer_for(model, questions(2), conversations_per_row=2)


def test_one_process_trains_on_one_device(model, trainer_for, processor, tmp_path, caplog):
    args = VisualLanguageConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    args._n_gpu = 2
    with caplog.at_level("WARNING", logger="vistok"):
        VisualLanguageTrainer(model, args, questions(2), processing_class=processor).train()
    assert "Training on one of 2 GPUs" in caplog.text


def test_an_own_collator_is_augmented_by_its_owner(model, trainer_for):
    with pytest.raises(ValueError, match="augment works on VisualLanguageCollator, not on function"):
        trainer_for(model, questions(2), augment=True, data_collator=lambda examples: {})


@pytest.mark.parametrize("options", [{"max_length": 8}, {"cache_features": True}], ids=str)
def test_what_only_the_trainers_own_collator_follows_is_refused_beside_another(model, processor, trainer_for, options):
    (name, value) = next(iter(options.items()))
    message = f"{name} is {value}, but only the trainer's own collator .* not the given VisualLanguageCollator"
    with pytest.raises(ValueError, match=message):
        trainer_for(model, questions(2), data_collator=VisualLanguageCollator(processor), **options)


# What goes wrong


def test_training_stops_at_a_loss_that_is_no_number_and_keeps_the_weights(model, processor, trainer_for):
    class BreaksOff(VisualLanguageCollator):
        batches = 0

        def __call__(self, examples):
            batch = super().__call__(examples)
            BreaksOff.batches += 1
            if BreaksOff.batches == 3:
                batch["pixel_values"][0, 0, 0, 0] = torch.nan
            return batch

    expected, _ = trained(model, trainer_for, questions(8), max_steps=2, lr_scheduler_type="constant")
    trainer = trainer_for(
        model, questions(8), max_steps=4, lr_scheduler_type="constant", data_collator=BreaksOff(processor)
    )
    with pytest.raises(DivergedError, match=r"The loss is nan in step 3\..*learning_rate \(now 0.01\)"):
        trainer.train()
    assert trainer.state.global_step == 2 and len(losses(trainer)) == 2
    assert largest_difference(parameters(model), expected) < 1e-4


def test_training_stops_at_a_gradient_that_is_no_number(model, trainer_for):
    model.model.projector.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = parameters(model)
    with pytest.raises(DivergedError, match=r"The gradient norm is (nan|inf) in step 1\."):
        trainer_for(model, questions(4)).train()
    assert largest_difference(parameters(model), before) == 0
