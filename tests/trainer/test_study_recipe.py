"""Recipes of studies: what they are made into, and what is refused before anything runs."""

import copy

import pytest

from vistok.configuration.shipped import shipped_path
from vistok.trainer.study_plan import plan_study
from vistok.trainer.study_recipe import fill_in, load_study, merge, study_from_dict

PROTOCOL = {
    "model": {"text": "vistok:smollm2-135m", "image_size": 112},
    "data": {"train": [{"format": "vqa", "name": "vqa", "path": "{train}/vqa_questions.json"}]},
    "training": {"max_steps": 10, "cache_features": True, "learning_rate": 1e-3},
}
STUDY = {
    "scenes": {"num_classes": 8, "train": {"num_scenes": 20}, "test": {"num_scenes": 10, "num_classes": 4}},
    "encoders": {
        "dino": {"how": "pretrained", "model": "vistok:dinov2-small", "feature_layer": -3},
        "classes": {"how": "supervised", "architecture": "vistok:dinov2-small", "training": {"max_steps": 7}},
        "random": {"how": "random", "architecture": "vistok:dinov2-small"},
        "fd": {"how": "distilled", "teacher": "dino"},
        "fd-masked": {"how": "distilled", "teacher": "dino", "mask_ratio": 0.4},
    },
    "seeds": [0, 3],
    "protocol": PROTOCOL,
    "tuned": {"training": {"learning_rates": {"vision": 1e-5}}},
    "supervision": {"training": {"max_steps": 5, "learning_rate": 1e-3}},
    "distillation": {"data": {"train": [{"format": "coco-captions", "path": "{train}/captions.json"}]}},
    "evaluation": {"tasks": {"oc": {"num_questions": 5}, "mci": None}},
}


def study(**changes):
    return study_from_dict(merge(copy.deepcopy(STUDY), changes))


def test_there_is_a_cell_for_each_encoder_tuning_and_seed_and_seeds_come_one_after_the_other():
    names = [job.name for job in plan_study(study()).jobs]
    cells = [name.removesuffix("/training") for name in names if name.endswith("/training")]
    assert len(cells) == len(set(cells)) == 5 * 2 * 2
    assert names[:3] == ["scenes/train", "scenes/test", "floors"]
    assert all(name.endswith("seed0") for name in cells[:10]) and cells[10:12] == [
        "cells/dino-frozen-seed3",
        "cells/dino-tuned-seed3",
    ]


def test_a_student_is_read_where_it_learned():
    """By default after its final norm, else where `distillation.student` has it, unless the encoder says otherwise."""
    assert [study().feature_layer_of(name) for name in ("dino", "random", "fd")] == [-3, -1, "final"]
    inner = study(distillation={"student": {"feature_layer": -2}}, encoders={"fd-masked": {"feature_layer": "final"}})
    assert [inner.feature_layer_of(name) for name in ("fd", "fd-masked")] == [-2, "final"]
    jobs = {job.name: job.config for job in plan_study(study(encoders={"fd-masked": {"teacher": "fd"}})).jobs}
    assert jobs["cells/fd-frozen-seed0/training"]["feature_layer"] == "final"
    assert [jobs[f"encoders/{name}"]["teacher_layer"] for name in ("fd", "fd-masked")] == [-3, "final"]


def test_jobs_need_what_they_are_made_of():
    jobs = {job.name: set(job.needs) for job in plan_study(study()).jobs}
    scenes = {"scenes/train", "scenes/test"}
    assert jobs["encoders/dino"] == jobs["encoders/random"] == set()
    assert jobs["encoders/classes"] == scenes
    assert jobs["encoders/fd"] == scenes | {"encoders/dino"}
    assert jobs["cells/fd-tuned-seed0/training"] == scenes | {"encoders/fd"}
    for measured in ("answers", "attention"):
        assert jobs[f"cells/fd-tuned-seed0/{measured}"] == scenes | {"cells/fd-tuned-seed0/training"}
    assert not any("probe" in name for name in jobs)


def test_probes_and_attention_are_jobs_only_where_they_are_wanted():
    probed = [
        job.name for job in plan_study(study(probe={"num_train": 20, "num_test": 10})).jobs if "probe" in job.name
    ]
    assert [name for name in probed if name.startswith("probes/")] == [f"probes/{name}" for name in STUDY["encoders"]]
    assert len(probed) == 5 + 5 * 2 and all("-tuned-" in name for name in probed[5:])  # a frozen tower stays as it is
    names = [job.name for job in plan_study(study(attention={"num_scenes": 0})).jobs]
    assert not any(name.endswith("/attention") for name in names)


def test_a_tuned_tower_is_trained_and_not_cached():
    jobs = {job.name: job.config for job in plan_study(study()).jobs}
    frozen, tuned = (jobs[f"cells/dino-{tuning}-seed0/training"]["protocol"] for tuning in ("frozen", "tuned"))
    assert frozen["trainable"]["vision"] == "frozen" and tuned["trainable"]["vision"] == "full"
    assert frozen["training"]["cache_features"] and not tuned["training"]["cache_features"]
    assert "learning_rates" not in frozen["training"] and tuned["training"]["learning_rates"] == {"vision": 1e-5}
    assert frozen["training"]["max_steps"] == tuned["training"]["max_steps"] == 10


def test_scenes_and_encoders_have_shared_settings_and_their_own():
    jobs = {job.name: job.config for job in plan_study(study()).jobs}
    assert jobs["scenes/train"] == {"num_classes": 8, "num_scenes": 20, "split": "train"}
    assert jobs["scenes/test"] == {"num_classes": 4, "num_scenes": 10, "split": "test"}
    assert jobs["encoders/classes"]["supervision"]["training"] == {"max_steps": 7, "learning_rate": 1e-3}
    assert jobs["encoders/fd"]["teacher_layer"] == -3 and jobs["encoders/fd-masked"]["mask_ratio"] == 0.4


def test_what_a_table_calls_an_encoder_changes_no_job():
    before, after = (
        plan_study(study()),
        plan_study(study(encoders={"dino": {"label": "DINOv2", "supervision": "self", "num_images": "142 M"}})),
    )
    assert before.configurations == after.configurations


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"scenes": {"train": {"num_scenes": 21}}}, lambda name: name not in ("encoders/dino", "encoders/random")),
        ({"protocol": {"training": {"max_steps": 11}}}, lambda name: name.startswith("cells/")),
        ({"tuned": {"training": {"learning_rates": {"vision": 2e-5}}}}, lambda name: "-tuned-" in name),
        ({"encoders": {"fd": {"seed": 1}}}, lambda name: name == "encoders/fd" or name.startswith("cells/fd-t") or
         name.startswith("cells/fd-f")),
        ({"seeds": [0]}, lambda name: False),
        ({"evaluation": {"max_new_tokens": 5}}, lambda name: name == "floors" or name.endswith("/answers")),
        ({"attention": {"num_scenes": 5}}, lambda name: name.endswith("/attention")),
        ({"attention": {"query": 3, "heads": [4, 1], "shown": 2}}, lambda name: False),
    ],
)  # fmt: skip
def test_a_change_changes_the_jobs_that_depend_on_it(changes, changed):
    before, after = plan_study(study()).configurations, plan_study(study(**changes)).configurations
    differing = {name for name in after if after[name]["hash"] != before[name]["hash"]}
    assert differing == {name for name in after if changed(name)}


def test_overrides_reach_any_field_also_of_lists(tmp_path):
    yaml = pytest.importorskip("yaml")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    overrides = ["--protocol.training.max_steps", "3", "--protocol.data.train.0.max_samples=9"]
    recipe = load_study(path, [*overrides, "--encoders.random.seed", "5"])
    assert recipe.protocol["training"]["max_steps"] == 3
    assert recipe.protocol["data"]["train"] == [{**PROTOCOL["data"]["train"][0], "max_samples": 9}]
    assert recipe.encoders["random"]["seed"] == 5 and list(recipe.encoders) == list(STUDY["encoders"])
    recipe = load_study(path, ["--threads", "2", "--title=My towers", "--seeds", "[4, 5]"])
    assert (recipe.threads, recipe.title, recipe.seeds) == (2, "My towers", [4, 5])
    with pytest.raises(ValueError, match="'--thread' is no override"):
        load_study(path, ["--thread", "2"])
    with pytest.raises(ValueError, match="train is a list of 1"):
        load_study(path, ["--protocol.data.train.1.max_samples", "9"])


def test_places_are_filled_in_wherever_they_are():
    values = {"a": ["{train}/x", 3], "b": {"c": "{test}"}, "d": None}
    assert fill_in(values, {"train": "/t", "test": "/e"}) == {"a": ["/t/x", 3], "b": {"c": "/e"}, "d": None}


def test_merging_leaves_both_as_they_were():
    first, second = {"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}}
    merged = merge(first, second)
    merged["a"]["c"].append(2)
    assert first == {"a": {"b": 1, "c": [1]}} and second == {"a": {"b": 2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {}}, "unknown section of the study 'encoder'.*Did you mean 'encoders'"),
        ({"encoders": {"x": {"how": "pretraind", "model": "m"}}}, "how in encoders.x 'pretraind'.*'pretrained'"),
        ({"encoders": {"x": {"how": "pretrained"}}}, "encoders.x has no model"),
        ({"encoders": {"x": {"how": "distilled", "teacher": "y"}}}, "teacher in encoders.x.* 'y'"),
        ({"encoders": {"fd": {"mask_ratio": 1.0}}}, "mask_ratio of encoders.fd is 1.0"),
        ({"encoders": {"x": {"how": "pretrained", "model": "m", "seed": 1}}}, "field of encoders.x.*'seed'"),
        ({"encoders": {"x/y": {"how": "pretrained", "model": "m"}}}, "names a folder"),
        ({"encoders": {"x": "dino"}}, "encoders.x is 'dino'"),
        ({"tuning": ["frozen", "loose"]}, "tuning of the study 'loose'"),
        ({"seeds": [0, 0]}, r"seeds of the study are \[0, 0\]"),
        ({"seeds": 1}, "seeds of the study is 1, expected a list"),
        ({"threads": 0}, "threads of the study is 0"),
        ({"evaluation": {"tasks": {"ocr": None}}}, "task of the study 'ocr'"),
        ({"evaluation": {"mode": "lax"}}, "mode of the evaluation 'lax'"),
        ({"protocol": {"training": {"max_step": 3}}}, "protocol of the study: 'max_step' is no field of training"),
        ({"tuned": {"training": {"max_step": 3}}}, "tuned of the study: 'max_step'"),
        ({"distillation": {"training": {"beat": 1}}}, "distillation of the study: 'beat'"),
        ({"attention": {"queries": 1}}, "field of attention 'queries'"),
        ({"attention": {"query": 32}}, "attention.query is 32, expected a whole number from 0 to 31"),
        ({"attention": {"heads": [0, 16]}}, "attention.heads is 16, expected a whole number from 0 to 15"),
        ({"attention": {"layer": 6}}, "attention.layer is 6, expected a whole number from -6 to 5"),
        ({"attention": {"shown": 13}}, "attention.shown is 13, expected a whole number from 1 to 12"),
        ({"scenes": {"num_clases": 8}}, "field of scenes 'num_clases'.*'num_classes'"),
        ({"scenes": {"test": {"num_scenes": 0}}}, "scenes.test.num_scenes is 0"),
        ({"scenes": {"test": 30}}, "scenes.test is 30, expected fields"),
        ({"evaluation": {"batch_size": -1}}, "evaluation.batch_size is -1"),
        ({"evaluation": {"num_shuffled": 0}}, "evaluation.num_shuffled is 0, .* or null"),
        ({"evaluation": {"max_new_tokens": 2.5}}, "evaluation.max_new_tokens is 2.5, expected a whole number"),
        ({"evaluation": {"dtype": "float23"}}, "dtype of the evaluation 'float23'"),
        ({"evaluation": {"tasks": {"oc": {"num_questions": 0}}}}, "tasks.oc.num_questions is 0"),
        ({"supervision": {"image_sizes": 3}}, "field of supervision 'image_sizes'"),
        ({"supervision": {"training": {"max_step": 3}}}, "field of supervision.training 'max_step'"),
        ({"supervision": {"training": {"learning_rate": -1.0}}}, "learning_rate is -1.0, expected a number above 0"),
        ({"encoders": {"classes": {"training": {"max_stps": 7}}}}, "encoders.classes.training 'max_stps'"),
        ({"encoders": {"random": {"seed": -1}}}, "encoders.random.seed is -1"),
        ({"encoders": {"random": {"image_size": "big"}}}, "encoders.random.image_size is 'big'"),
        ({"encoders": {"fd": {"training": {"bta": 2}}}}, "distillation of encoders.fd.*'bta'"),
        ({"protocol": {"training": {"max_steps": 0}}}, "protocol.training.max_steps is 0"),
        ({"protocol": {"model": {"vision": "some/tower"}}}, "protocol.model.vision is set by the study itself"),
        ({"distillation": {"teacher": {"model": "x"}}}, "distillation.teacher.model is set by the study itself"),
        ({"probe": {"num_train": 5}}, "probe has no num_test"),
        ({"probe": {"num_train": 5, "num_test": 0}}, "probe.num_test is 0"),
    ],
)
def test_what_could_not_be_run_is_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_a_study_without_encoders_or_tasks_is_none():
    with pytest.raises(ValueError, match="no encoders to compare"):
        study_from_dict({"protocol": PROTOCOL})
    with pytest.raises(ValueError, match=r"evaluation\.tasks is None"):
        study_from_dict({**STUDY, "evaluation": {}})


def test_the_shipped_study_can_be_planned():
    recipe = load_study(shipped_path("recipes/gvt/study.yaml"))
    jobs = plan_study(recipe).jobs
    kinds = {encoder["how"] for encoder in recipe.encoders.values()}
    assert kinds == {"pretrained", "random", "supervised", "distilled"}
    assert len([job for job in jobs if job.kind == "answers"]) == len(recipe.encoders) * 2 * len(recipe.seeds)
