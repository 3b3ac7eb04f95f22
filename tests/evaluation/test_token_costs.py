"""What visual tokens cost: counted FLOPs follow the number of tokens, and scores stand beside them."""

import json

import pytest
import torch

from tests.tiny import tiny_gvt, tiny_image, tiny_processor
from tests.tiny_setokim import tiny_setok_config, tiny_setokim, tiny_setokim_processor
from vistok import cli
from vistok.evaluation.compute_costs import WORD
from vistok.evaluation.token_costs import CostedModel, compare_costs, costs_markdown, write_costs

IMAGES = [tiny_image(number) for number in range(3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Setokim of few tokens, one of all patches, and a GVT with its resampler."""
    place = tmp_path_factory.mktemp("costed")
    fixed = {"method": "threshold", "min_tokens": 1, "max_tokens": 1}
    tiny_setokim(setok_config=tiny_setok_config(**fixed)).save_pretrained(place / "one")
    tiny_setokim_processor(num_image_tokens=1).save_pretrained(place / "one")
    tiny_setokim().save_pretrained(place / "hard")
    tiny_setokim_processor().save_pretrained(place / "hard")
    tiny_gvt().save_pretrained(place / "resampler")
    tiny_processor().save_pretrained(place / "resampler")
    return place


def test_costs_follow_the_number_of_tokens_and_flops_the_formula(folders, tmp_path):
    models = [CostedModel.parse(f"{name}={folders / name}") for name in ("hard", "one", "resampler")]
    report = {"task": "vqa", "split": "test", "model": str(folders / "one"), "accuracy": 0.5, "interval": [0.4, 0.6]}
    (tmp_path / "vqa-test.json").write_text(json.dumps(report))
    results = compare_costs(models, IMAGES, rounds=1, reports=[tmp_path])
    hard, one, resampler = results["rows"]
    assert one["tokens"] == 1 < hard["tokens"] and resampler["tokens"] == tiny_gvt().model.resampler.config.num_latents
    assert one["prefill_gflop"] < hard["prefill_gflop"] and one["kv_kib"] < hard["kv_kib"]
    assert all(row["step_ms"] > 0 for row in results["rows"])
    assert one["scores"]["vqa, right"] == {"label": "vqa, right", "value": 50, "interval": [40, 60]}
    text = costs_markdown({**results, "command": "as told"})
    assert "50.0 (40.0–60.0)" in text and "ratios to hard" in text and "as told" in text
    assert [file.name for file in write_costs(results, tmp_path / "out")] == ["token_costs.json", "token_costs.md"]


def test_flops_of_a_prefill_are_those_of_the_formula(folders):
    (row,) = compare_costs([CostedModel("one", str(folders / "one"))], IMAGES[:1], num_text_tokens=5, rounds=1)["rows"]
    model, processor = tiny_setokim(), tiny_setokim_processor(num_image_tokens=1)
    config = model.config.text_config
    prompt = processor.image_token + 5 * WORD
    length = processor(images=[IMAGES[0]], text=prompt, return_tensors="pt")["input_ids"].shape[1]
    head_dim = config.hidden_size // config.num_attention_heads
    width, inner = config.hidden_size, config.intermediate_size
    projections = 2 * width * width + 2 * width * config.num_key_value_heads * head_dim + 3 * width * inner
    layers = config.num_hidden_layers * (projections * length + 2 * length**2 * width)
    head = width * (config.vocab_size if config.vocab_size else 0)
    counted = row["prefill_gflop"] * 1e9 / 2
    assert counted == pytest.approx(layers + head, rel=0.02), "and cos and sin of the positions"


def test_the_command_prints_the_table_and_refuses_what_does_not_belong(folders, tmp_path, capsys):
    tiny_image(1).save(tmp_path / "a.png")
    costs = ["--costs", f"few={folders / 'one'}", str(folders / "hard")]
    arguments = ["tokens", str(tmp_path / "a.png"), *costs, "--rounds", "1", "--report", str(tmp_path / "out")]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert "| few |" in capsys.readouterr().out and (tmp_path / "out" / "token_costs.md").is_file()
    for extra, told in (
        (["--tokens", "3"], "--tokens is for pictures of tokens"),
        (["--skip-empty"], "--skip-empty is for cluster quality"),
        (["--measure", "x.json"], "give one of the two"),
        (["--scores", "nowhere"], "There is no report nowhere"),
    ):
        assert cli.main([*arguments, *extra]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["tokens", str(tmp_path / "a.png"), "--rounds", "2"]) == 2
    assert "--rounds is for costs of models" in capsys.readouterr().err


def test_what_cannot_be_costed_is_told(folders, tmp_path):
    one = CostedModel("one", str(folders / "one"))
    with pytest.raises(ValueError, match="called one, one: give some, with different labels"):
        compare_costs([one, one], IMAGES)
    with pytest.raises(ValueError, match="There are no images"):
        compare_costs([one], [])
    with pytest.raises(ValueError, match="names no model"):
        CostedModel.parse("label=")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json is no report of vistok evaluate"):
        compare_costs([one], IMAGES, reports=[tmp_path / "bad.json"])
    assert torch.get_num_threads() >= 1
