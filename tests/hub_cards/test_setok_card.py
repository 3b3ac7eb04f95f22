"""The card of a SeTok says what its last phase taught it."""

import pytest

from tests.tiny_setok import tiny_setok_config
from vistok.hub_cards.card import write_card


@pytest.mark.parametrize(
    ("training", "learned"),
    [
        ({"phase": "reconstruction"}, "its tokens learned to draw the image again"),
        ({"phase": "reconstruction", "trainable": {"merger": "frozen"}}, "tokens that stayed as they were"),
        ({"phase": "boundaries", "trainable": {"merger": "frozen"}}, "its tokens learned the boundaries of objects"),
    ],
)
def test_the_card_says_whether_tokens_learned(tmp_path, training, learned):
    tiny_setok_config().save_pretrained(tmp_path)
    recipe = {"trainer": "setok", "model": {"kind": "setok", "checkpoint": "runs/before"}, "training": training}
    text = " ".join(write_card(tmp_path, {"recipe": recipe}).read_text().split())
    assert learned in text and text.count("learned") == 1
