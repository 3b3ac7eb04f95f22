"""Reports of studies, on planted results: tables, differences, answers and figures say what was planted."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.trainer.planted_study import LEVELS, OF_TUNING, plant_study, planted_recipe
from vistok.trainer.study import report_study, study_states, summary
from vistok.trainer.study_figure import _draw_floors
from vistok.trainer.study_plan import plan_study
from vistok.trainer.study_questions import LARGE, MASKS_MORE, OTHERS, TUNES, ask_questions, large_scale
from vistok.trainer.study_report import question_section, said, study_csv, study_markdown
from vistok.trainer.study_results import collect_study
from vistok.trainer.study_scores import Scores


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
    assert helps["pairs"][0]["terms"] == [["fd", "frozen", 1.0], ["dino", "frozen", -1.0]]
    oc, mci = (helps["pairs"][0]["differences"][task] for task in ("oc", "mci"))
    assert oc["value"] == pytest.approx(12, abs=2) and oc["low"] > 0 and abs(mci["value"]) < 2
    (hurts,) = asked["Does masking hurt feature distillation, frozen?"]["groups"]
    assert all(hurts["mean"][task]["high"] < 0 for task in ("vqa", "caption", "oc", "mci"))
    tuning = asked["Does tuning the tower lose semantics?"]
    assert len(tuning["pairs"]) == 3 and tuning["about"] == ["vqa_semantic", "caption"]
    (mean,) = (group["mean"] for group in tuning["groups"])
    assert mean["vqa"]["value"] == pytest.approx(-15, abs=2) and mean["vqa"]["high"] < 0
    assert mean["vqa_semantic"]["high"] < 0 and abs(mean["oc"]["value"]) < 2


def test_masking_is_asked_about_again_as_a_difference_of_differences(found):
    asked = next(question for question in found["questions"] if question["question"] == MASKS_MORE)
    (pair,) = asked["pairs"]
    assert [term[2] for term in pair["terms"]] == [1.0, -1.0, -1.0, 1.0]
    rows = {(row["encoder"], row["tuning"]): row["scores"]["oc"]["value"] for row in found["rows"]}
    of_states = [rows["fd-masked", tuning] - rows["fd", tuning] for tuning in ("frozen", "tuned")]
    assert pair["differences"]["oc"]["value"] == pytest.approx(of_states[0] - of_states[1])
    assert "the loss falls on 40 % of the patches only, at the same number of steps" in asked["confound"]


def test_towers_with_large_scale_pretraining_are_averaged_apart_from_the_others(tmp_path):
    recipe = planted_recipe(tmp_path, tuning=["frozen", "tuned"])
    recipe.encoders["dino"] = {"how": "random", "architecture": "some/dino", "label": "random"}
    recipe.encoders = {"other": {"how": "pretrained", "model": "m"}, **recipe.encoders}
    assert large_scale(recipe.encoders) == {"other"}
    recipe.encoders["fd"]["teacher"] = "other"
    assert large_scale(recipe.encoders) == {"other", "fd"}
    scores = Scores(*_planted_scores({"other": -20, "fd": -10, "dino": 6, "fd-masked": 0}))
    asked = next(one for one in ask_questions(recipe, scores) if one["question"] == TUNES)
    large, others = asked["groups"]
    assert (large["towers"], others["towers"]) == (LARGE, OTHERS)
    assert large["members"] == ["other: tuned − frozen", "FD: tuned − frozen"]
    assert large["mean"]["oc"]["value"] == pytest.approx(-15) and others["mean"]["oc"]["value"] == pytest.approx(3)
    text = question_section({}, asked)
    assert "Towers with large-scale pretraining, and their students* (other: tuned − frozen; FD" in text


def _planted_scores(changes: dict[str, float], level: float = 50.0, floor: float = 30.0):
    """Scores of one task that tuning changes by a planted amount; no model shows the same twice."""
    generator, images = np.random.default_rng(0), [f"{number}.jpg" for number in range(60)]
    cells = {}
    for encoder, change in changes.items():
        for tuning in ("frozen", "tuned"):
            values = level + generator.normal(0, 1, 60) + (change if tuning == "tuned" else 0)
            values -= values.mean() - level - (change if tuning == "tuned" else 0)
            places = list(range(0, 60, 3))
            measured = {"values": values.tolist(), "images": images, "parts": [None] * 60, "shuffled": 1.0}
            measured |= {"shuffled_places": places, "shuffled_values": [float(values[place]) - 7 for place in places]}
            cells[encoder, tuning, 0] = {"oc": measured}
    floors = {"oc": {"values": {"majority": [floor] * 60, "question_only_prior": [floor - 5] * 60}}}
    return cells, ["oc"], floors


def test_no_verdict_is_given_on_models_that_are_both_at_the_floor():
    low, above = (Scores(*_planted_scores({"a": 2.0, "b": 0.0}, floor=floor)) for floor in (52.5, 30.0))
    assert low.is_at_floor(("a", "frozen"), "oc") and not above.is_at_floor(("a", "frozen"), "oc")
    pair = low.tasks.difference(("a", "tuned"), ("a", "frozen"), "oc")
    assert pair.low > 0
    recipe = planted_recipe("somewhere")
    recipe.encoders = {"a": {"how": "pretrained", "model": "m"}}
    for scores, verdict in ((low, "cannot be told: both at the floor"), (above, "higher")):
        (asked,) = (one for one in ask_questions(recipe, scores) if one["question"] == TUNES)
        assert said(asked["groups"][0]["mean"]["oc"]).endswith(verdict)
    assert "none of these models is above the floor" in question_section({}, {**asked, **_at_floor(asked)})
    without = Scores(*_planted_scores({"a": 2.0})[:2], {})
    assert not without.is_at_floor(("a", "frozen"), "oc")


def _at_floor(asked):
    pairs = [
        {**pair, "differences": {"oc": {**pair["differences"]["oc"], "at_floor": True}}} for pair in asked["pairs"]
    ]
    return {"pairs": pairs}


def test_a_gain_is_that_of_the_same_questions_with_their_own_scenes():
    scores = Scores(*_planted_scores({"a": 0.0}))
    found = scores.gains.score(("a", "frozen"), "oc")
    assert found.value == pytest.approx(7)


def test_a_difference_is_told_by_its_interval_alone():
    seen = "+1.2 (−0.3 to +2.7), could have seen ±1.5: not told apart from zero"
    assert said({"value": 1.23, "low": -0.31, "high": 2.7}) == seen
    assert said({"value": 1.23, "low": 0.31, "high": 2.7}) == "+1.2 (+0.3 to +2.7), could have seen ±1.2: higher"
    assert said({"value": -4.0, "low": -5.0, "high": -0.01}).startswith("−4.0 (−5.0 to −0.01), could")
    assert said({"value": 0.0, "low": None, "high": None}) == "0.0 (–): cannot be told: all answers alike"
    some = {"value": 1.0, "low": 0.5, "high": 2.0, "at_floor": False, "num_at_floor": 1}
    assert said(some, 3).endswith("higher, 1 of 3 pairs at the floor")


def test_the_text_holds_tables_floors_answers_attention_and_cost(found):
    text = study_markdown(found)
    scores = text.split("## All models")[1].split("## ")[0]
    row = next(line for line in scores.splitlines() if line.startswith("| × | self | DINO | – |"))
    assert row.count(" to ") == 10 and row.count("<br>gain +") == 5
    assert "| *majority answer* |  | *25.0* |" in scores and "| *question-only prior* |  | *30.0* |" in scores
    assert "other scenes of the same 31 cut-outs and 17 photographs" in scores and "| features |" not in scores
    assert "| DINO, frozen | 20.0 | 20.0 | 20.0 | 20.0 | 20.0 |" in text
    assert "| FD, frozen | 0.450 (" in text and "| 55.0 (" in text and "| 25.0 |" in text
    assert "| FD − DINO, frozen | +0.300 (" in text
    assert "distilled from dino, mask 0.4 (mAP 42.0 on the test scenes)" in text
    assert "6 degrees of freedom" in text and "Not finished" not in text
    assert "12 trained models: 3 encoders, 2 seeds" in text
    assert "| FD | DINO | 0.250 | 0.500 | 40.0 | 60.0 | 7.5 | 40.0 | 60.0 | 7.5 |" in text
    assert "| DINO | 60.0 (55.0 to 65.0) | 20.0 (20.0 to 20.0) |" in text
    jobs = 3 + 2 * 3 + 12 * 3 + 6  # scenes, floors; encoders and their probes; cells; probes of tuned towers
    assert f"{jobs * 120 / 3600:.1f} CPU hours in all" in text and "scenes 4.0, floors 2.0" in text


def test_the_best_of_a_column_is_bold_and_the_second_underlined_as_in_the_paper(found):
    text = study_markdown(found)
    table = text.split("## Distillation, masks and tuning")[1].split("## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        [f"| {name}", mark, mask] for mark in "×✓" for name, mask in (("DINO", "-"), ("FD", "×"), ("masked FD", "✓"))
    ]
    values = {(row["encoder"], row["tuning"]): row["scores"]["oc"]["value"] for row in found["rows"]}
    order = sorted(values, key=values.get, reverse=True)
    assert f"**{values[order[0]]:.1f}**" in table and f"<u>{values[order[1]]:.1f}</u>" in table
    assert table.count("**") == 2 * 5 and table.count("<u>") == 5
    before_after = text.split("## With and without feature distillation")[1].split("## ")[0]
    assert "| DINO | without |" in before_after and "| FD | with |" in before_after and "masked" not in before_after


def test_the_table_of_cells_has_a_row_for_each(found):
    rows = list(csv.DictReader(io.StringIO(study_csv(found))))
    assert len(rows) == 12 and {row["seed"] for row in rows} == {"0", "1"}
    planted = {(cell["encoder"], cell["tuning"], str(cell["seed"])): cell["tasks"] for cell in found["cells"]}
    for row in rows:
        expected = planted[row["encoder"], row["tuning"], row["seed"]]["oc"]["score"]
        assert float(row["oc_score"]) == pytest.approx(expected, abs=1e-4)
        assert row["cost_cpu_seconds"] == ("360.0" if row["tuning"] == "frozen" else "480.0")
        assert len(row["hash"]) == 16


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
    cells = ("cells/fd-tuned-seed1", "cells/fd-masked-frozen-seed0", "cells/fd-masked-frozen-seed1")
    kinds = ("training", "answers", "attention")
    missing = ("floors", *(f"{cell}/{kind}" for cell in cells for kind in kinds), "cells/fd-tuned-seed1/probe")
    plant_study(recipe, leave_out=missing)
    states = study_states(recipe)
    assert {name for name, state in states.items() if state == "not started"} == set(missing)
    assert summary(states) == {"finished": len(states) - 11, "not started": 11}
    text = report_study(recipe)["study.md"].read_text(encoding="utf-8")
    assert "**Not finished:** 11 jobs (floors, cells/fd-masked-frozen-seed0/training, cells/" in text
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


def test_the_text_is_there_even_if_a_figure_cannot_be_drawn(tmp_path, monkeypatch):
    recipe = planted_recipe(tmp_path)
    plant_study(recipe)

    def fails(*args):
        raise RuntimeError

    monkeypatch.setattr("vistok.trainer.study_report.draw_study", fails)
    with pytest.raises(RuntimeError):
        report_study(recipe)
    assert (tmp_path / "study.md").exists() and not (tmp_path / "study.png").exists()


def test_other_heads_and_another_query_are_drawn_from_what_lies_there(tmp_path):
    recipe = planted_recipe(tmp_path)
    plant_study(recipe)
    pictures = []
    for query, heads, shown in ((0, [0, 1], 1), (2, [1], 3)):
        recipe.attention |= {"query": query, "heads": heads, "shown": shown}
        assert set(study_states(recipe).values()) == {"finished"}
        pictures.append(report_study(recipe)["attention.png"].read_bytes())
    assert pictures[0] != pictures[1]


def test_a_floor_out_of_range_does_not_stretch_the_axis():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    found = {"tasks": ["caption"], "floors": {"caption": {"majority": 141.0, "question_only_prior": 3.0}}}
    _draw_floors(axes, found, "caption", (0.0, 5.0), {})
    assert axes.get_xlim()[1] < 10 and [text.get_text() for text in axes.texts] == ["141 →"]
