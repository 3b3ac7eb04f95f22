"""Evaluation reports beside their floors."""

import pytest

from vistok.hub_cards.card_evaluation import (
    evaluation_table,
    further_metrics,
    gain_over_floors,
    model_index,
    normalised_report,
    type_table,
    unclear_gains,
)

PERCENT = {
    "task": "shapes",
    "split": "test",
    "num_questions": 1000,
    "accuracy": 92.5,
    "interval": [90.25, 94.0],
    "per_type": {"color": {"accuracy": 95.0, "num_questions": 600}},
    "floors": {"majority": 37.5, "question_only_prior": 67.25},
    "command": "vistok evaluate",
    "unanswered": 3,
}
SHARES = {
    **PERCENT,
    "accuracy": 0.925,
    "interval": [0.9025, 0.94],
    "per_type": {"color": {"accuracy": 0.95, "num_questions": 600, "interval": [0.9, 1.0]}},
    "floors": {
        "majority": {"accuracy": 0.375, "num_questions": 1000, "per_type": {"color": {"accuracy": 0.5}}},
        "blank_images": {"accuracy": 0.625, "num_questions": 200},
        "shuffled_images": None,
    },
    "gain": {"over": "majority", "accuracy": 0.55, "interval": None},
    "model": "/srv/ada/runs/x",
}
SCENES = {
    **SHARES,
    "breakdowns": {
        "photograph": {
            "photographs only": {"accuracy": 0.75, "num_questions": 400},
            "not only photographs": {"accuracy": 0.875, "num_questions": 600},
        }
    },
    "floors": {
        "majority": {"accuracy": 0.375, "breakdowns": {"photograph": {"photographs only": {"accuracy": 0.25}}}}
    },
}


def columns(table: list[list[str]], row: int = 1) -> dict[str, str]:
    return dict(zip(table[0], table[row], strict=True))


class TestNormalising:
    def test_percentages_stay_percentages(self):
        report = normalised_report(PERCENT)
        assert (report["accuracy"], report["interval"]) == (92.5, [90.25, 94.0])
        assert report["floors"] == {"majority": {"accuracy": 37.5}, "question_only_prior": {"accuracy": 67.25}}

    def test_shares_become_percentages_however_deep(self):
        report = normalised_report(SHARES)
        assert (report["accuracy"], report["interval"]) == (92.5, [90.25, 94.0])
        assert report["per_type"]["color"] == {"accuracy": 95.0, "num_questions": 600, "interval": [90.0, 100.0]}
        assert report["floors"]["majority"]["per_type"]["color"]["accuracy"] == 50.0
        assert report["gain"] == {"over": "majority", "accuracy": 55.0, "interval": None}

    def test_breakdowns_become_percentages_and_are_checked_too(self):
        assert normalised_report(SCENES)["breakdowns"]["photograph"]["photographs only"]["accuracy"] == 75.0
        wrong = {**SCENES, "breakdowns": {"photograph": {"photographs only": {"accuracy": -1}}}}
        with pytest.raises(ValueError, match="accuracy of shapes, photographs only is -1"):
            normalised_report(wrong)

    def test_normalising_again_changes_nothing(self):
        report = normalised_report(SHARES)
        assert normalised_report(report) == report

    def test_a_perfect_share_is_all_questions(self):
        assert normalised_report({"task": "shapes", "num_questions": 10, "accuracy": 1.0})["accuracy"] == 100.0

    def test_a_small_percentage_beside_a_larger_floor_stays(self):
        report = {"task": "shapes", "num_questions": 10, "accuracy": 0.5, "floors": {"majority": 37.3}}
        assert normalised_report(report)["accuracy"] == 0.5

    def test_a_report_is_left_as_it_was(self):
        normalised_report(SHARES)
        assert SHARES["accuracy"] == 0.925

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"task": None}, "has no task"),
            ({"num_questions": 0}, "num_questions of shapes is 0"),
            ({"num_questions": None}, "num_questions of shapes is None"),
            ({"accuracy": None}, "accuracy of shapes is None"),
            ({"accuracy": 101.0}, "is 101.0, expected a percentage"),
            ({"accuracy": float("nan")}, "is nan, expected a percentage"),
            ({"accuracy": "92.5"}, "is '92.5', expected a percentage"),
            ({"floors": {"majority": -1}}, "accuracy of shapes, majority is -1"),
            ({"per_type": {"color": {"accuracy": 200}}}, "accuracy of shapes, color is 200"),
            ({"interval": [93.0, 94.0]}, "interval of shapes is 93.0 to 94.0"),
        ],
    )
    def test_what_cannot_be_shown_is_refused_by_name(self, change, message):
        with pytest.raises(ValueError, match=message):
            normalised_report({**PERCENT, **change})


class TestTables:
    def test_a_score_stands_beside_its_interval_and_floors(self):
        assert columns(evaluation_table([normalised_report(PERCENT)])) == {
            "task": "shapes",
            "split": "test",
            "questions": "1,000",
            "accuracy (%)": "**92.50**",
            "95 % interval": "90.25 – 94.00",
            "majority answer": "37.50",
            "question only": "67.25",
            "gain over the best floor": "+25.25",
            "unanswered": "3",
        }

    def test_a_floor_of_fewer_questions_says_so(self):
        assert columns(evaluation_table([normalised_report(SHARES)]))["blank images"] == "62.50 (of 200)"

    def test_what_no_report_holds_has_no_column(self):
        bare = normalised_report({"task": "shapes", "num_questions": 10, "accuracy": 50.0})
        assert evaluation_table([bare])[0] == ["task", "questions", "accuracy (%)"]
        assert evaluation_table([]) == type_table(bare) == []

    def test_reports_of_different_content_share_one_table(self):
        bare = normalised_report({"task": "bare", "num_questions": 10, "accuracy": 50.0})
        table = evaluation_table([normalised_report(PERCENT), bare])
        assert columns(table, 2)["question only"] == "–"
        assert columns(table, 2)["task"] == "bare"

    def test_types_stand_beside_their_own_floors(self):
        assert columns(type_table(normalised_report(SHARES))) == {
            "questions about": "color",
            "questions": "600",
            "accuracy (%)": "**95.00**",
            "95 % interval": "90.00 – 100.00",
            "majority answer": "50.00",
        }

    def test_groups_of_a_breakdown_stand_below_the_types(self):
        table = type_table(normalised_report(SCENES))
        assert [row[0] for row in table] == ["questions about", "color", "photographs only", "not only photographs"]
        assert columns(table, 2)["questions"] == "400"
        assert columns(table, 2)["majority answer"] == "25.00"


class TestGain:
    def test_it_is_over_the_highest_floor(self):
        assert gain_over_floors(normalised_report(PERCENT)) == (25.25, "clear")

    def test_without_floors_there_is_none(self):
        assert gain_over_floors(normalised_report({**PERCENT, "floors": {}})) is None

    def test_an_interval_that_reaches_the_floor_is_not_clear(self):
        report = normalised_report({**PERCENT, "floors": {"majority": 90.5}})
        assert gain_over_floors(report) == (2.0, "not clear")
        assert columns(evaluation_table([report]))["gain over the best floor"] == "+2.00 (not clear)"
        assert unclear_gains([report, normalised_report(PERCENT)]) == unclear_gains([report])
        assert "On shapes, test," in unclear_gains([report])[0]

    def test_an_interval_under_the_floor_is_below_it(self):
        report = normalised_report({**PERCENT, "floors": {"majority": 94.5}})
        assert gain_over_floors(report) == (-2.0, "below")
        assert columns(evaluation_table([report]))["gain over the best floor"] == "-2.00 (below)"
        assert (
            "its accuracy (92.50) is below that of the most frequent answer, always (94.50)."
            in unclear_gains([report])[0]
        )

    def test_a_floor_of_other_questions_is_not_compared(self):
        floors = {"majority": {"accuracy": 37.5, "num_questions": 1000}}
        fewer = {"accuracy": 99.0, "num_questions": 200}
        report = normalised_report({**PERCENT, "floors": {**floors, "shuffled_images": fewer}})
        assert gain_over_floors(report) == (55.0, "clear")
        assert columns(evaluation_table([report]))["shuffled images"] == "99.00 (of 200)"
        assert list(model_index([report], "image-text-to-text")[0].metric_args["floors"]) == ["majority"]
        assert gain_over_floors(normalised_report({**PERCENT, "floors": {"shuffled_images": fewer}})) is None

    def test_each_gain_stands_there_with_its_interval(self):
        gains = {
            "majority": {"accuracy": 0.55, "interval": [0.5, 0.6]},
            "question_only_prior": {"accuracy": -0.01, "interval": None},
        }
        row = columns(evaluation_table([normalised_report({**SHARES, "gains": gains, "unanswered": 0})]))
        assert row["gain over majority answer"] == "+55.00 (+50.00 to +60.00)"
        assert row["gain over question only"] == "-1.00"
        assert row["unanswered"] == "0"


class TestModelIndex:
    def test_it_holds_the_score_with_its_interval_and_floors_and_each_type(self):
        overall, color = model_index([normalised_report(PERCENT)], "image-text-to-text")
        assert (overall.dataset_name, overall.dataset_split, overall.metric_value) == ("shapes, test", "test", 92.5)
        assert overall.metric_args == {
            "num_questions": 1000,
            "interval": [90.25, 94.0],
            "floors": {"majority": 37.5, "question_only_prior": 67.25},
        }
        assert (color.metric_name, color.metric_value) == ("accuracy on color (%)", 95.0)

    def test_groups_of_a_breakdown_are_results_too(self):
        results = model_index([normalised_report(SCENES)], "image-text-to-text")
        assert [(result.metric_name, result.metric_value) for result in results[2:]] == [
            ("accuracy on photographs only (%)", 75.0),
            ("accuracy on not only photographs (%)", 87.5),
        ]


class TestOtherMetrics:
    CAPTION = {
        "task": "caption",
        "split": "test",
        "num_questions": 40,
        "cider": 1.25,
        "interval": [1.0, 1.5],
        "unanswered": 0,
        "measured_by": [{"name": "cider", "label": "CIDEr", "scale": 100.0, "higher_is_better": True}],
        "floors": {"majority": {"cider": 0.173, "interval": [0.1, 0.2], "num_questions": 40}},
        "gains": {"majority": {"cider": 1.077, "interval": [0.8, 1.3]}},
    }
    COUNTING = {
        "task": "coco_oc",
        "split": "test",
        "num_questions": 88,
        "accuracy": 0.466,
        "interval": [0.349, 0.589],
        "unanswered": 2,
        "measured_by": [
            {"name": "accuracy", "label": "right", "scale": 100.0, "higher_is_better": True},
            {"name": "mae", "label": "MAE", "scale": 1, "higher_is_better": False},
            {"name": "accuracy_strict", "label": "right, strict", "scale": 100.0, "higher_is_better": True},
        ],
        "metrics": {
            "mae": {"value": 1.5, "interval": [1.0, 2.0]},
            "accuracy_strict": {"value": 0.4, "interval": None},
        },
        "per_type": {"1–2 objects": {"accuracy": 0.5, "interval": None, "num_questions": 60}},
        "floors": {
            "majority": {
                "accuracy": 0.5,
                "interval": [0.4, 0.6],
                "num_questions": 88,
                "metrics": {"mae": {"value": 1.25, "interval": None}},
            }
        },
    }

    def test_scores_that_are_no_accuracies_stand_under_their_own_name(self):
        table = evaluation_table([normalised_report(self.CAPTION), normalised_report(self.COUNTING)])
        assert table[0][:6] == ["task", "split", "questions", "accuracy (%)", "CIDEr", "95 % interval"]
        caption, counting = (dict(zip(table[0], row)) for row in table[1:])
        assert (caption["CIDEr"], caption["accuracy (%)"], caption["majority answer"]) == ("**125.00**", "–", "17.30")
        assert caption["gain over the best floor"] == "+107.70"
        assert (counting["CIDEr"], counting["accuracy (%)"]) == ("–", "**46.60**")
        assert counting["gain over the best floor"] == "-3.40 (not clear)"

    def test_further_metrics_keep_their_own_scale(self):
        recorded = normalised_report(self.COUNTING)
        assert recorded["metrics"]["mae"] == {"value": 1.5, "interval": [1.0, 2.0]}
        assert recorded["metrics"]["accuracy_strict"]["value"] == 40.0
        assert recorded["per_type"]["1–2 objects"]["accuracy"] == 50.0
        assert recorded["floors"]["majority"]["metrics"]["mae"]["value"] == 1.25
        table = [dict(zip(*pair)) for pair in zip([further_metrics(recorded)[0]] * 2, further_metrics(recorded)[1:])]
        assert [row["also measured"] for row in table] == ["MAE", "right, strict"]
        assert [row["value"] for row in table] == ["**1.50**", "**40.00**"]
        assert [row["majority answer"] for row in table] == ["1.25", "–"]
        assert further_metrics(normalised_report(self.CAPTION)) == []

    def test_a_recorded_report_is_not_scaled_again(self):
        for report in (self.CAPTION, self.COUNTING):
            recorded = normalised_report(report)
            assert normalised_report(recorded) == recorded

    def test_every_metric_is_in_the_index(self):
        found = model_index([normalised_report(self.CAPTION), normalised_report(self.COUNTING)], "task")
        assert [(result.metric_type, result.metric_value) for result in found] == [
            ("cider", 125.0),
            ("accuracy", 46.6),
            ("accuracy", 50.0),
            ("mae", 1.5),
            ("accuracy_strict", 40.0),
        ]

    def test_a_score_below_zero_is_refused(self):
        with pytest.raises(ValueError, match="The cider of caption is -1, expected a number from 0 on"):
            normalised_report({**self.CAPTION, "cider": -1, "interval": None})
