"""The card of a Setokim says which stage made it, what it was measured on, and how it writes masks and images."""

import json

import pytest

from tests.tiny_setokim import tiny_setokim_config
from vistok.hub_cards.card import write_card

METRICS = {
    "eval_words_loss": 1.5,
    "eval_words_loss_lm": 0.25,
    "eval_words_answer_accuracy": 0.875,
    "eval_masks_loss": 2.0,
    "eval_masks_loss_lm": 0.5,
    "eval_masks_loss_visual": 0.125,
    "eval_masks_loss_choice": 6.5,
    "eval_masks_ciou": 0.5,
    "eval_masks_giou": 0.4,
}


@pytest.mark.parametrize("draws", [True, False])
def test_the_card_tells_stage_measures_and_use(tmp_path, draws):
    config = tiny_setokim_config(draws=draws, token_bank_size=1234)
    config.base_models = {"vision": "runs/setok", "text": "vistok:smollm2-135m"}
    config.save_pretrained(tmp_path)
    recipe = {
        "trainer": "setokim",
        "model": {"kind": "setokim", "vision": "runs/setok", "text": "vistok:smollm2-135m", "image_size": 224},
        "trainable": {"projections": "full", "llm": "lora"},
        "data": {"train": [{"format": "photograph-scenes", "name": "scenes"}]},
        "training": {"stage": "instruction"},
        "card": {"title": "A tiny Setokim"},
    }
    text = write_card(tmp_path, json.loads(json.dumps({"recipe": recipe, "metrics": METRICS}))).read_text()
    assert "| stage | III, instruction tuning" in text and "| visual tokens | 20 wide |" in text
    assert "| words | 0.25 | 87.50 | – | – | – | – |" in text
    assert "| masks | 0.5 | – | 0.125 | 6.5 | 50.0 | 40.0 |" in text
    assert "| written tokens | chosen among 1,234 real ones |" in text
    assert "write.segment(" in text and ("generate_images" in text) == draws
    assert ("no: it has no detokenizer" in text) != draws
    assert "Semantic Equivalence" in text and "GVT" not in text and "- setokim" in text
