"""The `results.json` beside a model."""

import json

import pytest

from vistok.hub_cards.run_results import merge_results, read_results, run_environment

RUN = {"command": "vistok train a.yaml", "steps": 10, "train_loss": 0.25, "train_seconds": 3.0, "log_history": [{}]}
REPORT = {"task": "shapes", "split": "test", "num_questions": 100, "accuracy": 90.0}


class TestMerging:
    def test_what_is_not_given_stays(self, tmp_path):
        merge_results(tmp_path, RUN)
        merged = merge_results(tmp_path, {"environment": {"hardware": "one"}})
        assert merged == {**RUN, "environment": {"hardware": "one"}}
        assert read_results(tmp_path) == merged

    def test_the_keys_stand_in_one_order_whatever_comes_first(self, tmp_path):
        for key in ("zoo", "log_history", "evaluation", "bee", "train_loss", "command"):
            merge_results(tmp_path, {key: [] if key in ("log_history", "evaluation") else 1})
        assert list(read_results(tmp_path)) == ["command", "train_loss", "evaluation", "bee", "zoo", "log_history"]

    def test_merging_the_same_again_leaves_the_same_bytes(self, tmp_path):
        values = {**RUN, "evaluation": [REPORT]}
        merge_results(tmp_path, values)
        before = (tmp_path / "results.json").read_bytes()
        merge_results(tmp_path, values)
        assert (tmp_path / "results.json").read_bytes() == before

    def test_the_file_is_json_also_after_a_loss_that_is_not_a_number(self, tmp_path):
        merge_results(tmp_path, {"train_loss": float("nan")})

        def refuse(constant):
            raise AssertionError(constant)

        text = (tmp_path / "results.json").read_text()
        assert json.loads(text, parse_constant=refuse) == {"train_loss": None}

    def test_a_report_takes_the_place_of_the_former_of_the_same_questions(self, tmp_path):
        for report in (
            REPORT,
            {**REPORT, "split": "train"},
            {**REPORT, "num_questions": 50},
            {**REPORT, "accuracy": 95.0},
        ):
            merge_results(tmp_path, {"evaluation": [report]})
        found = [(r["split"], r["num_questions"], r["accuracy"]) for r in read_results(tmp_path)["evaluation"]]
        assert found == [("test", 100, 95.0), ("train", 100, 90.0), ("test", 50, 90.0)]

    def test_evaluations_of_other_weights_do_not_stay(self, tmp_path):
        merge_results(tmp_path, {**RUN, "evaluation": [REPORT], "card": {"title": "old"}})
        assert "evaluation" in merge_results(tmp_path, RUN)
        assert merge_results(tmp_path, {**RUN, "train_loss": 0.5}) == {**RUN, "train_loss": 0.5}

    def test_a_file_that_a_trainer_wrote_with_paths_is_the_same_run(self, tmp_path):
        raw = {**RUN, "command": "vistok train /srv/ada/a.yaml"}
        (tmp_path / "results.json").write_text(json.dumps({**raw, "evaluation": [REPORT]}))
        assert merge_results(tmp_path, raw) == {**RUN, "evaluation": [REPORT]}

    def test_a_damaged_file_is_named(self, tmp_path):
        (tmp_path / "results.json").write_text('{"steps": ')
        with pytest.raises(ValueError, match=r"results\.json is no valid JSON"):
            merge_results(tmp_path, RUN)

    def test_a_file_that_holds_no_object_is_named(self, tmp_path):
        (tmp_path / "results.json").write_text("[]")
        with pytest.raises(ValueError, match="holds a list"):
            read_results(tmp_path)


class TestEnvironment:
    def test_it_names_hardware_and_versions(self):
        import torch
        import transformers

        environment = run_environment()
        assert environment["hardware"]
        assert f"torch {torch.__version__}" in environment["software"]
        assert f"transformers {transformers.__version__}" in environment["software"]

    def test_it_counts_the_processes_of_a_run(self, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert "2 processes" in run_environment()["hardware"]
