"""What trainings and evaluations of visual modelling tell: losses, perplexity, entropy, punctuation, speed."""

# ruff: noqa: F811 (fixtures that are imported)

import copy
import math

import pytest
import torch
from datasets import Dataset

from tests.trainer.tiny_training import question, questions
from tests.trainer.tiny_visual_modeling import (
    NUM_TOKENS,
    STAGES,
    composed,  # noqa: F401 (fixtures)
    mixed,
    model,  # noqa: F401
    processor,  # noqa: F401
    trainer_for,  # noqa: F401
)
from vistok.modeling.vocabulary_chunks import OutputHead
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.visual_prediction import PredictedPositions, PredictionStatistics, statistics_of


class TestEvaluation:
    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_means_do_not_depend_on_batches(self, composed, trainer_for, batch_size):
        reference = trainer_for(
            copy.deepcopy(composed), "visual_modeling", None, mixed(8), per_device_eval_batch_size=8
        )
        expected = reference.evaluate()
        trainer = trainer_for(
            copy.deepcopy(composed), "visual_modeling", None, mixed(8), per_device_eval_batch_size=batch_size
        )
        found = trainer.evaluate()
        names = ("loss", "loss_lm", "loss_vm", "answer_accuracy", "visual_perplexity", "visual_entropy")
        for name in (*names, "punctuation_share"):
            assert found[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-5)
        assert found["eval_loss"] == pytest.approx(found["eval_loss_lm"] + found["eval_loss_vm"])

    def test_the_loss_of_a_training_batch_is_that_of_an_evaluation_of_it(self, composed, trainer_for):
        for stage in STAGES:
            trainer = trainer_for(
                copy.deepcopy(composed), stage, mixed(4), mixed(4), per_device_train_batch_size=4, max_steps=1,
                learning_rate=0.0,
            )  # fmt: skip
            trainer.train()
            logged, found = trainer.state.log_history[0], trainer.evaluate()
            for name in {"loss", "loss_lm", "loss_vm", "visual_perplexity", "visual_entropy"} & set(logged):
                assert found[f"eval_{name}"] == pytest.approx(logged[name], rel=1e-5), (stage, name)
            assert ("loss_lm" in logged) == (stage != "visual_tokens")
            assert ("loss_vm" in logged) == (stage in STAGES[2:])

    def test_perplexity_is_that_of_the_cross_entropy_and_never_below_that_of_the_entropy(self, composed, trainer_for):
        found = trainer_for(copy.deepcopy(composed), "visual_modeling", None, questions(4)).evaluate()
        cross_entropy = found["eval_loss_vm"] + found["eval_visual_entropy"]
        assert found["eval_visual_perplexity"] == pytest.approx(math.exp(cross_entropy), rel=1e-6)
        assert 0 <= found["eval_visual_entropy"] <= math.log(composed.config.text_config.vocab_size)

    def test_where_zero_divides_weights_text_alone_brings_a_blank_image_and_scores_as_without(
        self, composed, trainer_for, monkeypatch
    ):
        texts = Dataset.from_list([question(i) for i in range(4)], features=FEATURES)
        found, shown = [], []
        for divided in (False, True):
            monkeypatch.setattr(
                "vistok.trainer.reproducible_trainer.uses_zero3", lambda args, divided=divided: divided
            )
            model = copy.deepcopy(composed)
            model.model.vision_tower.register_forward_pre_hook(lambda *args, divided=divided: shown.append(divided))
            trainer = trainer_for(model, "visual_modeling", None, texts)
            found.append({k: v for k, v in trainer.evaluate().items() if "loss" in k or "accuracy" in k})
        assert found[0] == pytest.approx(found[1]) and set(shown) == {True} and len(shown) == 2

    def test_several_sets_are_evaluated_under_their_names(self, composed, trainer_for):
        sets = {"first": questions(3), "second": questions(4, per_image=2)}
        found = trainer_for(copy.deepcopy(composed), "visual_tokens", None, sets).evaluate()
        assert {"eval_first_loss_vm", "eval_second_loss_vm"} <= set(found) and "eval_first_loss_lm" not in found


class TestLogs:
    def test_each_head_is_multiplied_once_for_a_batch_of_an_evaluation(self, model, trainer_for, monkeypatch):
        rows, products = [], OutputHead.products
        monkeypatch.setattr(
            OutputHead,
            "products",
            lambda self, positions, out: rows.append(len(out)) or products(self, positions, out),
        )
        for stage in STAGES[2:]:
            trainer = trainer_for(copy.deepcopy(model), stage, None, questions(4), per_device_eval_batch_size=4)
            rows.clear()
            trainer.evaluate()
            assert sum(rows) == 2 * 4 * NUM_TOKENS

    def test_without_a_tokenizer_punctuation_alone_is_not_measured(self, model, processor):
        width = model.config.text_config.hidden_size
        positions = PredictedPositions(
            torch.randn(3, width).double(), torch.randn(3, width).double(), torch.tensor([0, 2, 2])
        )
        statistics = PredictionStatistics(model)
        assert statistics.by_row(positions, 4)[:, -1].tolist() == [1, 0, 2, 0]
        assert statistics_of(statistics.sums(positions)).keys() == {"visual_perplexity", "visual_entropy"}

    def test_the_share_of_punctuation_is_that_of_the_most_probable_words(self, model, trainer_for, processor):
        comma = processor.tokenizer.convert_tokens_to_ids(",")
        model.model.vm_head.weight.data.zero_()
        features = model.get_image_features(torch.zeros(1, 3, 24, 24, dtype=torch.float64)).last_hidden_state
        trainer = trainer_for(model, "visual_modeling", questions(4), max_steps=1)
        assert features.shape[1] == NUM_TOKENS
        word = processor.tokenizer("dog")["input_ids"][0]
        for token, share in ((comma, 1.0), (word, 0.0)):
            model.model.vm_head.weight.data.zero_()
            # Whatever an image looks like, one of two opposite tokens is the most probable one, and both are marks.
            model.model.vm_head.weight.data[token] = 1.0
            other = (
                processor.tokenizer.convert_tokens_to_ids(".") if share else processor.tokenizer("a")["input_ids"][0]
            )
            model.model.vm_head.weight.data[other] = -1.0
            assert trainer.evaluate(questions(3))["eval_punctuation_share"] == share

    def test_tokens_per_second_are_logged_of_texts_and_images(self, model, trainer_for):
        trainer = trainer_for(model, "visual_modeling", questions(4), logging_steps=2)
        trainer.train()
        (entry,) = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry]
        assert entry["tokens_per_second"] > 0
