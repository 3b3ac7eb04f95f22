"""`vistok evaluate` on tasks whose answers are images: what goes together, and one of them whole."""

import json

import pytest

from tests.evaluation.planted_images import planted_scenes
from tests.tiny_setokim import tiny_setokim, tiny_setokim_processor
from tests.vistok.commands import fails
from vistok import cli, cli_evaluate
from vistok.evaluation.image_tasks import IMAGE_TASKS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("setokim")
    tiny_setokim().save_pretrained(folder)
    tiny_setokim_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    planted_scenes(folder, 3)
    annotations = json.loads((folder / "instances.json").read_text())["annotations"]
    found = [
        {"ref_id": one["id"], "ann_id": one["id"], "split": "test", "sentences": [{"sent": f"the {one['id']}"}]}
        for one in annotations
    ]
    (folder / "refs(vistok).json").write_text(json.dumps(found))
    return str(folder)


def test_the_help_names_the_tasks_and_conditions_that_there_are():
    assert tuple(IMAGE_TASKS) == cli_evaluate.IMAGE_TASKS
    named = [name for task in IMAGE_TASKS.values() for name in (*task.floors, *task.ceilings)]
    assert set(named) == set(cli_evaluate.IMAGE_CONDITIONS)


def test_expressions_are_evaluated_and_reported(model, scenes, tmp_path, capsys):
    arguments = ["evaluate", "--model", model, "--task", "referring", "--questions", scenes, "--by-background"]
    arguments += ["--floors", "shuffled_expressions", "best_cluster", "--output", str(tmp_path), "--device", "cpu"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "| expressions | number | cIoU, % (95 % interval) | shuffled expressions | best cluster |" in out
    assert "3 photographs" in out and "Report, chart and predictions" in out
    assert (tmp_path / "referring-test.pictures.png").is_file()


def test_what_does_not_go_together_is_told(model, scenes, capsys):
    given = ["evaluate", "--model", model, "--questions", scenes, "--task"]
    assert "evaluate one after the other" in fails(capsys, *given, "referring,vqa")
    assert "--mode is for tasks whose answers are words" in fails(capsys, *given, "referring", "--mode", "strict")
    assert "--steps is for tasks whose answers are images" in fails(capsys, *given, "vqa", "--steps", "3")
    assert "'majority' is no floor of referring" in fails(capsys, *given, "referring", "--floors", "majority")
    assert "'grid' is no floor of vqa" in fails(capsys, *given, "vqa", "--floors", "grid")
    assert "give --probe-scenes" in fails(capsys, *given, "generation")
    assert cli.main([*given, "reconstruction", "--frechet", "none", "--device", "cpu"]) == 2
    assert "has no detokenizer" in capsys.readouterr().err


def test_a_model_of_another_kind_is_told(scenes, adapter_folder, capsys):
    given = ["evaluate", "--model", adapter_folder, "--questions", scenes, "--task", "referring"]
    assert "is for models of type setokim" in fails(capsys, *given)
