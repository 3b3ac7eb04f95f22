"""Cards of every kind are whole, and a card that is not is told of before it is published."""

import pytest
from huggingface_hub import ModelCard

from tests.hub_folders import KINDS
from tests.tiny import tiny_eva_config, tiny_gvt_config
from tests.tiny_kinds import tiny_vtlmm_config
from tests.tiny_llava import tiny_setok_llava
from tests.tiny_setokim import tiny_setok_config, tiny_setok_vision_config, tiny_setokim_config
from vistok.hub_cards.card import write_card
from vistok.hub_cards.card_check import check_complete
from vistok.hub_cards.card_facts import device_hours
from vistok.hub_cards.published_card import published_card

CONFIGS = {
    "gvt": tiny_gvt_config,
    "vtlmm": tiny_vtlmm_config,
    "setokim": tiny_setokim_config,
    "setok": tiny_setok_config,
    "setok_vision": tiny_setok_vision_config,
    "setok_llava": lambda: tiny_setok_llava().config,
    "eva_vision": tiny_eva_config,
}
HEADER = "---\nlicense: mit\n---\n"


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    CONFIGS[request.param]().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("code", ["package", "stub", "self-contained"])
def test_the_card_of_every_kind_is_whole_and_says_how_to_load_it(folder, code):
    (card,) = published_card(folder, "org/mine", code).values()
    assert '"org/mine"' in card
    assert ("import vistok  #" in card) is (code != "self-contained")
    assert ("trust_remote_code=True" in card) is (code != "package")
    for title in ("## Use", "## Architecture", "## Citation"):
        assert title in card or (title == "## Architecture" and "setok" in ModelCard(card).data.tags)


def test_a_card_is_written_for_every_kind(folder):
    first = write_card(folder).read_text(encoding="utf-8")
    assert write_card(folder).read_text(encoding="utf-8") == first
    check_complete(first, folder)


def test_pictures_that_lie_beside_the_model_are_shown(tmp_path):
    tiny_gvt_config().save_pretrained(tmp_path)
    (tmp_path / "attention.png").write_bytes(b"png")
    assert "![Where each visual token looks](attention.png)" in write_card(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("Trained on [More Information Needed]", "a field of a template"),
        ("By {{ author }}", "a field of a template"),
        ("TODO: limits", "a note to fill in"),
        ("By <your name>", "a placeholder"),
        ("## Limits\n\n## Use\n\ntext", "'Limits' of the card has no text"),
        ("text\n\n## Limits", "'Limits' of the card has no text"),
        ("See [the log](log.jsonl)", r"links to log\.jsonl"),
    ],
)
def test_what_is_not_filled_or_not_there_is_refused(tmp_path, body, message):
    with pytest.raises(ValueError, match=message):
        check_complete(f"{HEADER}\n# Title\n\n{body}\n", tmp_path)


def test_code_and_links_to_elsewhere_are_no_faults(tmp_path):
    text = "Use `{{ x }}`, [a page](https://example.org/a), [below](#below)."
    body = f"{text}\n\n```python\n# TODO {{{{ }}}}\n```\n\n## Below\n\nEnd."
    check_complete(f"{HEADER}\n# Title\n\n{body}\n", tmp_path)


def test_a_run_costs_the_hours_of_its_devices():
    assert device_hours("8 × NVIDIA H200", 5400) == "12 GPU hours"
    assert device_hours("4 CPU cores (x86_64)", 3600) == "4 CPU-core hours"
    assert device_hours("", 3600) == device_hours("1 × GPU", None) == ""
