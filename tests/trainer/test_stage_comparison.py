"""Comparisons of arms: their jobs, what is refused, a whole tiny one, and what its report allows to conclude."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny_image
from tests.trainer.tiny_visual_modeling import NUM_TOKENS
from vistok.configuration.shipped import shipped_path
from vistok.evaluation.seed_replicates import AVERAGE
from vistok.modeling.trained_weights import read_trained_weights
from vistok.trainer import stage_comparison_figure
from vistok.trainer.run_lineage import weights_digest
from vistok.trainer.stage_comparison_jobs import KINDS, plan_comparison
from vistok.trainer.stage_comparison_recipe import StageComparison, load_comparison
from vistok.trainer.stage_comparison_report import collect_comparison, comparison_markdown, write_comparison
from vistok.trainer.study_jobs import job_state, run_jobs
from vistok.trainer.study_process import do_job

STAGES = ("alignment", "instruction", "visual_tokens", "visual_modeling")


@pytest.fixture
def comparison(base_models, tmp_path, monkeypatch):
    """Makes a comparison of two arms on eight questions about four images."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    lines = []
    for index in range(8):
        tiny_image(index // 2).save(tmp_path / f"{index // 2}.png")
        turns = [
            {"from": "human", "value": "<image>\na dog?"},
            {"from": "gpt", "value": ("no", "yes", "no")[index % 3]},
        ]
        lines.append(json.dumps({"id": str(index), "image": f"{index // 2}.png", "conversations": turns}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    source = {"format": "llava", "path": str(tmp_path / "data.jsonl"), "images": str(tmp_path)}
    for stage in STAGES:
        model = {"vision": base_models[0], "text": base_models[1], "image_size": 24, "chat_template": "chatml"}
        training = {"stage": stage, "use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2}
        training |= {"save_strategy": "no", "logging_steps": 1}
        recipe = {
            "trainer": "visual-modeling",
            "model": {**(model if stage == "alignment" else {"checkpoint": "runs/elsewhere"}), "kind": "vtlmm"},
            "data": {"train": [source]},
            "training": {**training, "output_dir": f"runs/{stage}"},
        }
        (tmp_path / f"{stage}.yaml").write_text(json.dumps(recipe))

    def make(**changes) -> StageComparison:
        last = str(tmp_path / "visual_modeling.yaml")
        values = {
            "stages": {stage: str(tmp_path / f"{stage}.yaml") for stage in STAGES[:3]},
            "arms": {
                "stop": {"after": "instruction", "label": "stages I and II"},
                "text": {
                    "after": "visual_tokens",
                    "recipe": last,
                    "changes": {"training": {"visual_loss_weight": 0.0}},
                },
                "images": {"after": "visual_tokens", "recipe": last},
            },
            "compare": [["images", "text"], ["images", "stop"]],
            "seeds": [0, 1],
            "evaluation": {"tasks": {"mine": {"test": source, "train": source}}, "max_new_tokens": 2, "batch_size": 4},
            "output_dir": str(tmp_path / "out"),
        }
        return StageComparison(**{**values, **changes})

    return make


def test_the_shipped_comparison_has_two_controls_and_three_seeds():
    recipe = load_comparison(shipped_path("recipes/vtlmm/demo/comparison.yaml"), ["--changes.training.max_steps", "5"])
    plan = plan_comparison(recipe)
    trained = [job.name for job in plan.jobs if job.kind == "stage"]
    assert len(trained) == 3 + 2 * 3 and recipe.seeds == [0, 1, 2]
    configs = {job.name: job.config for job in plan.jobs}
    one, other = (configs[f"arms/{arm}-seed1/training"] for arm in ("text-alone", "visual-modelling"))
    assert one["start"] == other["start"] == "stages/visual-tokens/training"
    # The two differ in the weight of the visual loss alone.
    assert one["recipe"]["training"].pop("visual_loss_weight") == 0.0
    assert one["recipe"] == other["recipe"] and one["recipe"]["training"]["seed"] == 1
    assert all(configs[name]["recipe"]["training"]["max_steps"] == 5 for name in trained)


def test_jobs_need_the_stage_they_come_after_and_a_change_of_it_changes_them(comparison):
    plan = plan_comparison(comparison())
    assert [job.name for job in plan.jobs][:4] == [
        *(f"stages/{s}/training" for s in STAGES[:3]),
        "stages/instruction/answers",
    ]
    changed = plan_comparison(comparison(changes={"training": {"learning_rate": 0.5}}))
    relabelled = plan_comparison(comparison(title="Other"))
    for job in plan.jobs:
        assert plan.configurations[job.name]["hash"] != changed.configurations[job.name]["hash"]
        assert plan.configurations[job.name] == relabelled.configurations[job.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": {}}, "needs stages"),
        ({"seeds": [0, 0]}, r"seeds of the comparison are \[0, 0\]"),
        (
            {"arms": {"a": {"after": "instructoin"}}},
            "unknown stage that arms.a comes after 'instructoin'.*Did you mean",
        ),
        ({"arms": {"a": {"after": "instruction", "changes": {}}}}, "arms.a has changes, but no recipe"),
        ({"compare": [["images", "nobody"]]}, r"compare holds \['images', 'nobody'\]"),
        ({"evaluation": {}}, "evaluation has no tasks"),
        ({"evaluation": {"tasks": {"mine": {"number": 3}}}}, "unknown field of evaluation.tasks.mine 'number'"),
        ({"changes": {"training": {"max_stepps": 3}}}, "stages.alignment of the comparison: 'max_stepps' is no field"),
        ({"threads": 0}, "threads of the comparison is 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(comparison, changes, message):
    with pytest.raises(ValueError, match=message):
        comparison(**changes)


def test_a_whole_comparison_trains_asks_and_reports(comparison, tmp_path):
    recipe, output = comparison(seeds=[0]), tmp_path / "out"
    plan, done = plan_comparison(recipe), []

    def launch(configuration):
        done.append(configuration["job"])
        assert do_job(output, configuration["job"], KINDS) == 0

    outcome = run_jobs(output, plan, plan.jobs, launch)
    assert outcome.finished == [job.name for job in plan.jobs] == done and not outcome.failed
    assert run_jobs(output, plan, plan.jobs, launch).finished == done  # and nothing is done twice
    assert len(done) == len(plan.jobs) and {job_state(output, one) for one in plan.configurations.values()} == {
        "finished"
    }

    folders = {
        name: output / name / "training" / "model"
        for name in ("stages/visual_tokens", "arms/text-seed0", "arms/images-seed0")
    }
    start = weights_digest(folders["stages/visual_tokens"])
    for arm in ("arms/text-seed0", "arms/images-seed0"):
        results = json.loads((folders[arm] / "results.json").read_text())
        assert results["started_from"] == start
    heads = [read_trained_weights(str(folder))["model.vm_head.weight"] for folder in folders.values()]
    assert (heads[0] == heads[1]).all() and (heads[0] == heads[2]).all()  # shared by both arms

    found = collect_comparison(recipe)
    assert found["tasks"] == {"mine": 8} and not found["missing"]
    assert found["trainings"]["stages/alignment/training"]["examples"] == 8
    assert found["trainings"]["stages/visual_tokens/training"]["rows"] == 4  # each image once
    assert found["arms"]["stop"]["floors"]["mine"].keys() == {"majority", "question_only_prior"}
    files = write_comparison(recipe, "vistok study mine.yaml")
    text = files["comparison.md"].read_text()
    assert "stages I and II" in text and "no conclusion" in text and str(tmp_path) not in text
    assert {"loss_lm", "loss_vm", "visual_entropy"} <= found["logs"]["arms/images-seed0/training"].keys()
    assert all(
        f"({name})" in text and files[name].is_file() for name in ("comparison.png", "comparison-trainings.png")
    )
    assert NUM_TOKENS == 9


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, by the names of their files."""
    figures = {}
    monkeypatch.setattr(
        stage_comparison_figure, "save_figure", lambda figure, path: figures.update({path.name: figure})
    )
    return figures


def places(axes) -> set[tuple[float, float | None]]:
    """Ends of the lines and places of the marks of a panel; without a height of what goes from top to bottom."""
    points = {(round(float(x), 3), float(y)) for line in axes.lines for x, y in line.get_xydata()}
    upright = {(x, None) for x, y in points if {(x, 0.0), (x, 1.0)} <= points}
    ends = {tuple(np.round(end, 3)) for bars in axes.collections for path in bars.get_paths() for end in path.vertices}
    return points | upright | ends


class TestReport:
    """Planted: arm `images` is right where `text` is, and on every tenth question more."""

    NUM_IMAGES, PER_IMAGE = 500, 5

    @pytest.fixture
    def planted(self, comparison, tmp_path):
        def plant(level=0.6, more=0.1, prior=40.0, recipe=None):
            recipe, generator = recipe or comparison(), np.random.default_rng(0)
            output, plan = Path(recipe.output_dir), plan_comparison(recipe)
            right = generator.random(self.NUM_IMAGES * self.PER_IMAGE) < level
            for job in plan.jobs:
                folder = output / job.name
                folder.mkdir(parents=True)
                flips = generator.random(len(right)) < 0.02  # of every model
                values = right ^ flips
                if "images" in job.name:
                    values |= generator.random(len(right)) < more / (1 - level)
                results = {
                    "steps": 3,
                    "epochs": 1.0,
                    "examples": 8,
                    "rows": 8,
                    "train_loss": 1.0,
                    "parameters": {"trained": 5},
                    "metrics": {
                        "eval_mine_loss_vm": 0.5,
                        "eval_mine_loss_lm": 1.25,
                        "eval_mine_punctuation_share": 0.07,
                    },
                    "log_history": [{"step": 1, "loss_lm": 2.0}, {"step": 3, "loss_lm": 1.0}, {"train_loss": 1.0}],
                }
                if "images" in job.name:
                    shares = (0.1, 0.3) if "seed0" in job.name else (0.2, 0.6)
                    results["log_history"] = [
                        {"step": step, "punctuation_share": share} for step, share in zip((1, 3), shares)
                    ]
                if job.kind == "stage-answers":
                    results = {"mine": {
                        "score": 100 * float(values.mean()), "num_questions": len(values), "num_unanswered": 0,
                        "shuffled": prior, "num_shuffled": 100,
                        "floors": {"majority": 30.0, "question_only_prior": prior},
                        "values": (100 * values.astype(int)).tolist(),
                        "images": [f"{index // self.PER_IMAGE}.png" for index in range(len(values))],
                    }}  # fmt: skip
                document = {**plan.configurations[job.name], "cost": {"cpu_seconds": 60.0}, "results": results}
                (folder / "results.json").write_text(json.dumps(document))
            return recipe

        return plant

    def test_a_planted_difference_is_found_and_told(self, planted):
        found = collect_comparison(planted())
        (entry, _) = found["differences"]
        assert entry["arms"] == ["images", "text"] and len(entry["mine"]["seeds"]) == 2
        assert entry["mine"]["low"] < 10 < entry["mine"]["high"] and entry["mine"]["low"] > 5
        assert found["enough"]["mine"]["is_enough"] and found["enough"]["mine"]["gain"] == pytest.approx(20, abs=3)
        text = comparison_markdown(found)
        assert "images against text: images scores higher" in text
        assert "| *question only* |  | *40.0* |" in text

    def test_what_was_measured_of_visual_tokens_is_told(self, planted):
        text = comparison_markdown(collect_comparison(planted()))
        assert "| arms/images-seed1 | mine | 1.25 | 0.5 | – | – | 7 % |" in text

    def test_a_model_is_known_by_its_seed_also_where_that_of_another_seed_is_missing(self, planted, tmp_path):
        recipe = planted()
        (tmp_path / "out" / "arms" / "images-seed0" / "answers" / "results.json").unlink()
        found = collect_comparison(recipe)
        assert found["arms"]["images"]["seeds"] == [1] and found["arms"]["stop"]["seeds"] == [None]
        assert found["differences"][0]["mine"]["seeds"] == ()
        rows = write_comparison(recipe)["comparison.csv"].read_text().splitlines()
        assert [row.split(",")[:2] for row in rows[1:]] == [
            ["stop", ""],
            ["text", "0"],
            ["text", "1"],
            ["images", "1"],
        ]

    def test_scores_floors_and_differences_are_drawn(self, planted, drawn):
        recipe = planted()
        found = collect_comparison(recipe)
        assert write_comparison(recipe)["comparison.png"].name in drawn
        scores, differences = drawn["comparison.png"].axes
        assert [label.get_text() for label in scores.get_yticklabels()] == ["stages I and II", "text", "images"]
        at = places(scores)
        assert {(30.0, None), (40.0, None)} <= at  # majority and question alone
        for height, arm in enumerate(found["arms"].values()):
            one = arm["scores"]["mine"]
            assert {(round(one[name], 3), height) for name in ("value", "low", "high")} <= at
            assert (40.0, height) in at  # other images
        for height, one in enumerate(found["differences"]):
            assert (round(one["mine"]["value"], 3), height) in places(differences)

    def test_differences_of_all_tasks_fit_into_the_scale_that_they_share(self, planted, drawn, tmp_path):
        found = collect_comparison(planted())
        found["tasks"]["wide"] = found["tasks"]["mine"]
        for entry in found["arms"].values():
            for name in ("scores", "floors", "shuffled"):
                entry[name]["wide"] = entry[name]["mine"]
            entry["scores"][AVERAGE] = entry["scores"]["mine"]
        wide = {"value": -40.0, "low": -60.0, "high": -20.0, "seeds": ()}
        for one in found["differences"]:
            one["wide"], one[AVERAGE] = wide, one["mine"]
        stage_comparison_figure.draw_comparison(found, tmp_path / "comparison.png")
        highest = max(one["mine"]["high"] for one in found["differences"])
        for axes in drawn["comparison.png"].axes[3:]:
            low, high = axes.get_xlim()
            assert low < -60 and high > highest

    def test_curves_of_shared_stages_and_of_arms_with_the_mean_of_their_seeds_are_drawn(self, planted, drawn):
        write_comparison(planted())
        text, punctuation = [axes for axes in drawn["comparison-trainings.png"].axes if axes.get_title()]
        assert [label.get_text() for label in text.get_xticklabels()] == [
            "alignment\n3 steps", "instruction\n3 steps", "visual_tokens\n3 steps", "arms\n3 steps",
        ]  # fmt: skip
        assert [label.get_text() for label in punctuation.get_xticklabels()] == ["arms\n3 steps"]
        curves = [line.get_xydata().round(3).tolist() for line in punctuation.lines]
        third = 0.333
        assert curves == [[[third, 10], [1, 30]], [[third, 20], [1, 60]], [[third, 15], [1, 45]]]

    def test_without_logs_there_are_no_curves(self, planted, drawn):
        recipe = planted()
        for file in Path(recipe.output_dir).glob("**/training/results.json"):
            document = json.loads(file.read_text())
            document["results"].pop("log_history")
            file.write_text(json.dumps(document))
        files = write_comparison(recipe)
        assert set(drawn) == {"comparison.png"} and "comparison-trainings" not in files["comparison.md"].read_text()

    def test_without_a_difference_none_is_told(self, planted):
        text = comparison_markdown(collect_comparison(planted(more=0.0)))
        assert "images against text: no difference is shown" in text

    def test_close_to_the_prior_nothing_is_concluded(self, planted):
        found = collect_comparison(planted(prior=55.0))
        assert not found["enough"]["mine"]["is_enough"]
        text = comparison_markdown(found)
        assert "mine: no conclusion" in text and "scores higher" not in text

    def test_the_spread_of_seeds_is_none_of_the_stage_that_they_share(self, planted, tmp_path):
        recipe = planted()
        for file in (tmp_path / "out").glob("arms/*-seed1/answers/results.json"):
            document = json.loads(file.read_text())
            values = document["results"]["mine"]["values"]
            values[: len(values) // 3] = [0] * (len(values) // 3)  # another seed is 20 points worse
            file.write_text(json.dumps(document))
        found = collect_comparison(recipe)
        scores = {arm: one["scores"]["mine"] for arm, one in found["arms"].items()}
        widths = {arm: score["high"] - score["low"] for arm, score in scores.items()}
        assert widths["stop"] < 6 and min(widths["text"], widths["images"]) > 20

    def test_as_long_as_the_arm_that_stops_was_not_asked_nothing_is_concluded(self, planted, tmp_path):
        recipe = planted()
        (tmp_path / "out" / "stages" / "instruction" / "answers" / "results.json").unlink()
        found = collect_comparison(recipe)
        assert not found["enough"]["mine"]["is_enough"] and set(found["arms"]) == {"text", "images"}
        text = comparison_markdown(found)
        assert "mine: no conclusion. stages I and II: unknown above" in text and "scores higher" not in text

    def test_on_too_few_questions_nothing_is_concluded(self, planted):
        self.NUM_IMAGES = 300
        assert not collect_comparison(planted())["enough"]["mine"]["is_enough"]

    def test_nothing_finished_is_an_error(self, comparison):
        with pytest.raises(ValueError, match=r"No arm of the comparison .* is finished"):
            collect_comparison(comparison())
