"""Reports of studies, on planted results: tables, differences, answers and figures say what was planted."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_study import LEVELS, OF_TUNING, plant_study, planted_recipe
from vistok.trainer.study import report_study, study_states, summary
from vistok.trainer.study_plan import plan_study
from vistok.trainer.study_report import said, study_csv, study_markdown
from vistok.trainer.study_results import collect_study


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    recipe = planted_recipe(tmp_path_factory.mktemp("study"))
    plant_study(recipe)
    return recipe


@pytest.fixture(scope="module")
def found(recipe):
    from pathlib import Path

    return collect_study(recipe, plan_study(recipe), Path(recipe.output_dir))


def test_every_kind_of_model_has_its_scores_over_seeds(found):
    assert [(row["encoder"], row["tuning"]) for row in found["rows"]] == [
        (encoder, tuning) for encoder in LEVELS for tuning in ("frozen", "tuned")
    ]
    for row in found["rows"]:
        for task, level in LEVELS[row["encoder"]].items():
            score = row["scores"][task]
            assert score["value"] == pytest.approx(np.mean(score["seeds"])) and len(score["seeds"]) == 2
            planted = level + (OF_TUNING[task] if row["tuning"] == "tuned" else 0)
            assert score["low"] < planted < score["high"]
        tasks = [row["scores"][task]["value"] for task in LEVELS["dino"]]
        assert row["scores"]["average"]["value"] == pytest.approx(np.mean(tasks))


def test_the_three_questions_are_answered_with_what_was_planted(found):
    asked = {question["question"]: question for question in found["questions"]}
    helps = asked["Does feature distillation help fine-grained perception?"]
    assert helps["about"] == ["oc", "mci"]
    assert helps["pairs"][0]["first"] == ["fd", "frozen"] and helps["pairs"][0]["second"] == ["dino", "frozen"]
    oc, mci = (helps["pairs"][0]["differences"][task] for task in ("oc", "mci"))
    assert oc["low"] < 12 < oc["high"] and oc["low"] > 0 and mci["low"] < 0 < mci["high"]
    hurts = asked["Does masking hurt feature distillation, frozen?"]["mean"]
    assert all(hurts[task]["high"] < 0 for task in ("vqa", "caption", "oc", "mci"))
    tuning = asked["Does tuning the tower lose semantics?"]
    assert len(tuning["pairs"]) == 3 and tuning["about"] == ["vqa", "caption"]
    assert tuning["mean"]["vqa"]["low"] < -15 < tuning["mean"]["vqa"]["high"] < 0
    assert tuning["mean"]["oc"]["low"] < 0 < tuning["mean"]["oc"]["high"]


def test_a_difference_is_told_by_its_interval_alone():
    assert said({"value": 1.23, "low": -0.31, "high": 2.7}) == "+1.2 (−0.3 to +2.7): no difference seen"
    assert said({"value": 1.23, "low": 0.31, "high": 2.7}) == "+1.2 (+0.3 to +2.7): higher"
    assert said({"value": -4.0, "low": -5.0, "high": -0.01}) == "−4.0 (−5.0 to 0.0): lower"


def test_the_text_holds_tables_floors_answers_attention_and_cost(found):
    text = study_markdown(found)
    frozen = text.split("## Tower frozen")[1].split("## ")[0]
    row = next(line for line in frozen.splitlines() if "| DINO |" in line)
    assert row.startswith("| self | DINO | ") and row.count(" to ") == 5
    assert "| *majority answer* | *25.0* |" in frozen and "| *question-only prior* | *30.0* |" in frozen
    assert "| DINO, frozen | 20.0 | 20.0 | 20.0 | 20.0 | 20.0 |" in text
    assert "| FD, frozen | 0.450 (" in text and "| 55.0 (" in text and "| 25.0 |" in text
    assert "distilled from dino, mask 0.4 (mAP 42.0 on the test scenes)" in text
    assert "6 degrees of freedom" in text and "Not finished" not in text
    assert "12 trained models: 3 encoders, 2 seeds" in text


def test_the_table_of_cells_has_a_row_for_each(found):
    rows = list(csv.DictReader(io.StringIO(study_csv(found))))
    assert len(rows) == 12 and {row["seed"] for row in rows} == {"0", "1"}
    planted = {(cell["encoder"], cell["tuning"], str(cell["seed"])): cell["tasks"] for cell in found["cells"]}
    for row in rows:
        expected = planted[row["encoder"], row["tuning"], row["seed"]]["oc"]["score"]
        assert float(row["oc_score"]) == pytest.approx(expected, abs=1e-4)
        assert row["cost_cpu_seconds"] == "120.0" and len(row["hash"]) == 16


def test_files_are_written_and_name_no_folder_of_this_machine(recipe):
    files = report_study(recipe, f"vistok study {recipe.output_dir}/study.yaml")
    assert sorted(files) == ["attention.png", "study.csv", "study.json", "study.md", "study.png"]
    for name in ("study.png", "attention.png"):
        assert min(Image.open(files[name]).size) > 300
    for name in ("study.json", "study.md", "study.csv"):
        assert str(recipe.output_dir) not in files[name].read_text(encoding="utf-8")
    assert len(json.loads(files["study.json"].read_text())["cells"]) == 12


def test_a_study_that_is_not_finished_is_reported_as_far_as_it_is(tmp_path):
    recipe = planted_recipe(tmp_path)
    missing = ("floors", "cells/fd-tuned-seed1", "cells/fd-masked-frozen-seed0", "cells/fd-masked-frozen-seed1")
    plant_study(recipe, leave_out=missing)
    states = study_states(recipe)
    assert {name for name, state in states.items() if state == "not started"} == set(missing)
    assert summary(states) == {"finished": len(states) - 4, "not started": 4}
    text = report_study(recipe)["study.md"].read_text(encoding="utf-8")
    assert "**Not finished:** 4 jobs (floors, cells/fd-masked-frozen-seed0, cells/" in text
    assert "majority" not in text and "Does masking hurt feature distillation, frozen?" not in text
    assert "Does masking hurt feature distillation, tuned?" in text


def test_one_seed_says_that_nothing_is_known_of_others(tmp_path):
    recipe = planted_recipe(tmp_path, seeds=[3], tuning=["frozen"])
    plant_study(recipe)
    text = report_study(recipe)["study.md"].read_text(encoding="utf-8")
    assert "with one seed, nothing is known of the spread between seeds" in text and "3 encoders, 1 seed." in text
    assert "lose semantics" not in text


def test_nothing_finished_is_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match=r"No cell of the study in .* is finished"):
        report_study(planted_recipe(tmp_path))


def test_a_head_that_there_is_not_is_refused(tmp_path):
    recipe = planted_recipe(tmp_path, attention={"heads": [0, 7]})
    plant_study(recipe)
    with pytest.raises(ValueError, match=r"attention\.heads of the study has 7, but the resampler has 2"):
        report_study(recipe)
