"""The card of a VT-LMM says which stage made it, with which loss, and what was measured of both losses."""

import json

import pytest
from transformers import ConvNextConfig

from tests.tiny import IMAGE_SIZE, tiny_dinov2_config, tiny_llama_config
from vistok import VTLMMConfig
from vistok.hub_cards.card import write_card

METRICS = {
    "eval_mine_loss": 1.5,
    "eval_mine_loss_lm": 0.25,
    "eval_mine_answer_accuracy": 0.875,
    "eval_mine_loss_vm": 1.25,
    "eval_mine_visual_perplexity": 400.0,
    "eval_mine_visual_entropy": 4.5,
    "eval_mine_punctuation_share": 0.125,
    "eval_mine_runtime": 3.0,
}


@pytest.fixture
def card(tmp_path):
    def write(stage="visual_modeling", metrics=METRICS, tower=None, **training):
        parts = {"vision_config": tower or tiny_dinov2_config(), "text_config": tiny_llama_config()}
        config = VTLMMConfig(**parts, image_token_id=340, vm_head_rank=3)
        config.base_models = {"vision": "vistok:dinov2-small", "text": "vistok:smollm2-135m"}
        config.save_pretrained(tmp_path)
        recipe = {
            "trainer": "visual-modeling",
            "model": {"kind": "vtlmm", "checkpoint": "runs/before", "image_size": IMAGE_SIZE},
            "trainable": {"vision": "frozen", "adapter": "frozen", "llm": "lora", "vm_head": "frozen"},
            "data": {"train": [{"format": "cutout-scenes", "name": "captions", "where": {"kind": "caption"}}]},
            "training": {"stage": stage, "learning_rate": 2e-5, **training},
            "card": {"title": "A tiny VT-LMM", "license": "apache-2.0"},
        }
        results = {"recipe": recipe, "metrics": metrics, "steps": 4, "parameters": {"trained": 10, "all": 1000}}
        return write_card(tmp_path, json.loads(json.dumps(results))).read_text()

    return write


def test_the_card_tells_the_stage_its_loss_and_what_was_measured(card):
    text = card()
    assert "| stage | IV, visual modelling" in text and "Loss_LM + Loss_VM, Loss_VM = KL(P'‖Q) (Eq. 6 and 7)" in text
    assert "| visual modelling head | 48 → 384, of rank 3 |" in text
    assert "| captions | cutout-scenes | kind: caption |" in text
    assert "started from | runs/before" in text and "| llm | LoRA adapters trained |" in text
    measured = [line for line in text.splitlines() if line.startswith("| mine |")]
    assert measured == ["| mine | 0.25 | 87.50 | 1.25 | 400 | 4.5 | 12.5 |"]
    assert "get_visual_tokens" in text and "Visual Words" in text and "GVT" not in text
    assert "pipeline_tag: image-text-to-text" in text and "- vtlmm" in text


@pytest.mark.parametrize(
    ("stage", "training", "loss"),
    [
        ("alignment", {}, "| loss | Loss_LM (Eq. 4) |"),
        ("visual_tokens", {}, "| loss | Loss'_VM = KL(Q‖P') (Eq. 9) |"),
        ("visual_modeling", {"visual_loss_weight": 0.5}, "| loss | Loss_LM + 0.5 · Loss_VM |"),
        ("visual_modeling", {"visual_loss_weight": 0.0}, "Loss_LM alone: a control for visual modelling"),
    ],
)
def test_each_stage_has_its_loss(card, stage, training, loss):
    assert loss in card(stage, **training)


def test_columns_are_those_that_were_measured(card):
    text = card("visual_tokens", {"eval_loss": 2.0, "eval_loss_vm": 2.0})
    assert "| evaluation data | 2 |" in text and "answers right" not in text


def test_widths_are_those_of_the_adapter_also_behind_a_convolutional_tower(card):
    assert "| adapter | 32 → 48 → 48 |" in card()
    text = card(tower=ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4))
    assert "| adapter | 16 → 48 → 48 |" in text
    assert "convnext, stages of 8, 12, 16 and 20; its `hidden_states[-2]`" in text
