"""What a card says of a model, gathered from its config and its training."""

from pathlib import Path

import pytest

from tests.tiny_llava import tiny_setok_llava
from vistok.configuration.shipped import shipped_path
from vistok.hub_cards import card_facts
from vistok.hub_cards.run_results import merge_results, read_results
from vistok.hub_cards.setok_llava_card import setok_llava_card_values


class TestDataPackages:
    def test_a_format_that_reads_packages_has_their_licences(self):
        from vistok.trainer.backgrounds import BACKGROUND_COLLECTIONS
        from vistok.trainer.captioned_photographs import COLLECTION
        from vistok.trainer.cutouts import COLLECTIONS

        assert card_facts.FORMAT_PACKAGES["cutout-scenes"] == tuple(COLLECTIONS)
        assert card_facts.FORMAT_PACKAGES["photograph-scenes"] == (*COLLECTIONS, *BACKGROUND_COLLECTIONS)
        assert card_facts.FORMAT_PACKAGES["scene-masks"] == card_facts.FORMAT_PACKAGES["photograph-scenes"]
        assert card_facts.FORMAT_PACKAGES["captioned-photographs"] == (COLLECTION,)
        rows, unknown = card_facts.licence_table([], [{"format": "cutout-scenes", "name": "scenes"}])
        assert [row[2] for row in rows] == ["MIT", "MIT AND Apache-2.0", "GPL-2.0-or-later"]
        assert unknown == []

    def test_collections_of_a_source_take_the_place_of_all(self):
        source = {"format": "cutout-scenes", "options": {"collections": ["fluent-emoji"]}}
        assert [p.name for p in card_facts.data_packages([source])["cutout-scenes"]] == ["fluent-emoji"]

    def test_a_source_of_ones_own_has_no_recorded_licence(self):
        rows, unknown = card_facts.licence_table([], [{"format": "llava", "name": "easy-vqa", "path": "mine.json"}])
        assert (rows, unknown) == ([], ["easy-vqa"])


class TestBaseModels:
    @pytest.mark.parametrize("name", ["openai/clip-vit-large-patch14", "org/a.b_c-1"])
    def test_an_organisation_and_a_name_are_a_hub_id(self, name):
        assert card_facts.is_hub_id(name)

    @pytest.mark.parametrize(
        "name",
        ["/srv/tower", "./models/tower", "../tower", "~/tower", "a/b/c", "tower", "org/a b", "C:/tower", "org/"],
    )
    def test_paths_are_none(self, name):
        assert not card_facts.is_hub_id(name)

    def test_vision_comes_before_text_and_each_by_its_public_name(self, tmp_path):
        names = {"text": "/srv/ada/llm/", "vision": "vistok:dinov2-small"}
        vision, text = card_facts.base_models(names, tmp_path)
        assert (vision.name, vision.hub_id) == ("vistok:dinov2-small", "facebook/dinov2-small")
        assert (text.part, text.name, text.hub_id) == ("text", "llm", None)

    def test_what_ships_with_vistok_brings_its_own_parts_and_licences(self, tmp_path):
        models = card_facts.base_models({"vision": "vistok:vtlmm-demo"}, tmp_path)
        assert [(model.part, model.name) for model in models] == [
            ("vision", "vistok:vtlmm-demo"),
            ("vision of vistok:vtlmm-demo", "vistok:dinov2-small"),
            ("text of vistok:vtlmm-demo", "vistok:smollm2-135m"),
        ]
        rows, unknown = card_facts.licence_table(models, [])
        assert rows[0] == ("`vistok:vtlmm-demo`", "ships with vistok", "apache-2.0") and unknown == []
        assert [row[2] for row in rows[-2:]] == ["MIT", "Apache-2.0"]
        sources = read_results(shipped_path("checkpoints/vtlmm-demo"))["recipe"]["data"]["train"]
        of_its_data = {row[1:] for row in card_facts.licence_table([], sources)[0]}
        assert "GPL-2.0-or-later" in {licence for _, licence in of_its_data}
        assert {row[0] for row in rows[1:-2]} == {"data of `vistok:vtlmm-demo`"}
        assert len(rows[1:-2]) == len(of_its_data) and {row[1:] for row in rows[1:-2]} == of_its_data

    def test_what_ships_without_results_is_no_error(self, tmp_path, monkeypatch):
        monkeypatch.setattr(card_facts, "shipped_checkpoint", lambda name: tmp_path)
        found = card_facts.licence_table([card_facts.BaseModel("vision", "vistok:new")], [])
        assert found == ([("`vistok:new`", "ships with vistok", "see its card")], [])

    def test_data_of_what_ships_without_a_recorded_licence_is_named(self, tmp_path, monkeypatch):
        merge_results(tmp_path, {"recipe": {"data": {"train": [{"format": "llava", "name": "mine"}]}}})
        monkeypatch.setattr(card_facts, "shipped_checkpoint", lambda name: tmp_path)
        _, unknown = card_facts.licence_table([card_facts.BaseModel("vision", "vistok:new")], [])
        assert unknown == ["mine of vistok:new"]

    def test_the_summary_of_a_llava_with_setok_names_only_its_own_parts(self, tmp_path):
        config = tiny_setok_llava().config
        config.base_models = {"vision": "vistok:vtlmm-demo", "text": "org/llm"}
        summary = setok_llava_card_values(tmp_path, {}, config)["summary"]
        assert summary.startswith("A LLaVA (vistok:vtlmm-demo and org/llm) that reads")

    def test_a_name_of_vistok_that_is_not_known_is_shown_as_it_is(self):
        (model,) = card_facts.base_models({"vision": "vistok:gone"}, Path("."))
        assert (model.name, model.hub_id, model.package) == ("vistok:gone", None, None)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (35, "35 s"), (59.7, "1 min 0 s"), (125, "2 min 5 s"), (86_399, "23 h 59 min")],
)
def test_durations_are_in_words(seconds, expected):
    assert card_facts.duration(seconds) == expected


def test_hyper_parameters_are_written_as_in_a_recipe():
    training = {
        "learning_rate": 1e-4,
        "bf16": True,
        "optim": "adamw_torch",
        "lr_scheduler_kwargs": {"a": 1},
        "seed": None,
    }
    training |= {"eval_steps": 5, "save_dtype": "bfloat16", "feature_cache_dir": "x", "logging_steps": 1}
    assert card_facts.hyper_parameters(training) == [
        ("learning_rate", "0.0001"),
        ("bf16", "true"),
        ("optim", "adamw_torch"),
        ("lr_scheduler_kwargs", '{"a": 1}'),
    ]
