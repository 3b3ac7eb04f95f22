"""The metrics as modules of evaluate: loaded by path without a network, and as Spaces that need no vistok."""

import json
import os
import re
import subprocess
import sys

import evaluate
import pytest
import yaml

from vistok.evaluation.metric_modules import METRICS, export_metric, metric_path

# What each is computed of, and figures that can be told by hand.
CASES = {
    "cider_d": ({"predictions": ["a red car", "two dogs"], "references": [["a red car"], ["a cat"]]}, {"cider": 375}),
    "gvtbench_mci": (
        {"predictions": ["Yes.", "Yes, no"], "references": ["No.", "No."], "n_obj_exist": [3, 12]},
        {"accuracy": 50, "num_questions": 2},
    ),
    "gvtbench_oc": ({"predictions": ["3 dogs", "Two"], "references": ["3", "2"], "mode": "strict"}, {"accuracy": 100}),
    "pope": (
        {"predictions": ["Yes", "No."], "references": ["yes", "yes"], "splits": ["random", "popular"]},
        {"recall": 50, "yes_ratio": 50},
    ),
    "seed_bench": (
        {"predictions": [0, 3, 2], "references": [0, 1, 2], "dimensions": ["a", "b", "a"]},
        {"accuracy": 50},
    ),
    "vqa_accuracy": (
        {"predictions": ["A dog."], "references": [["dog"] * 2 + ["cat"] * 8], "types": ["other"]},
        {"accuracy": 60},
    ),
}

COMPUTE = """
import json, sys
import evaluate
print(json.dumps({path: evaluate.load(path).compute(**inputs) for path, inputs in json.loads(sys.argv[1]).items()}))
print("vistok" in sys.modules)
"""


def compute_elsewhere(paths, cwd, home):
    """Loads modules by path in a fresh interpreter, with empty caches and no network, and computes their cases."""
    inputs = {str(path): CASES[path.name][0] for path in paths}
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", COMPUTE, json.dumps(inputs)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    results, imports_vistok = result.stdout.splitlines()[-2:]
    return {path.name: json.loads(results)[str(path)] for path in paths}, imports_vistok == "True"


def check(results):
    assert set(results) == set(METRICS)
    for name, (_, expected) in CASES.items():
        assert {key: results[name][key] for key in expected} == pytest.approx(expected)
    assert results["gvtbench_mci"]["bins"]["<10"]["accuracy"] == 0
    assert results["pope"]["bins"]["popular"]["accuracy"] == 0
    assert results["vqa_accuracy"]["bins"]["other"]["accuracy"] == pytest.approx(60)


def test_every_metric_loads_by_path_and_computes_offline():
    # conftest sets HF_HUB_OFFLINE and gives the tests caches of their own.
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    check({name: evaluate.load(str(metric_path(name))).compute(**CASES[name][0]) for name in METRICS})


def test_exported_metrics_compute_the_same_without_vistok(tmp_path):
    folders = [export_metric(name, tmp_path / "spaces" / name) for name in METRICS]
    empty = tmp_path / "empty"
    empty.mkdir()
    results, imports_vistok = compute_elsewhere(folders, empty, tmp_path / "home")
    check(results)
    assert not imports_vistok
    for folder in folders:
        code = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
        assert not re.search(r"^(from|import) vistok\b", code, re.MULTILINE)
        assert "vistok" not in (folder / "requirements.txt").read_text()
        assert sorted(path.name for path in (tmp_path / "spaces").iterdir()) == sorted(METRICS)
    assert "nltk" in (tmp_path / "spaces" / "cider_d" / "requirements.txt").read_text()


@pytest.mark.parametrize("name", METRICS)
class TestFolders:
    def test_a_metric_has_what_a_space_needs(self, name):
        folder = metric_path(name)
        files = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
        assert files == {f"{name}.py", "README.md", "app.py", "requirements.txt"}
        _, header, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        header = yaml.safe_load(header)
        assert header["sdk"] == "gradio" and header["app_file"] == "app.py" and "metric" in header["tags"]
        assert all(f"## {heading}" in card for heading in ("How to Use", "Limitations and Bias", "Citation"))

    def test_its_script_imports_one_module_a_line_as_evaluate_reads_it(self, name):
        script = (metric_path(name) / f"{name}.py").read_text(encoding="utf-8")
        imports = [line for line in script.splitlines() if line.startswith(("import ", "from "))]
        assert len(imports) == 3
        assert not any(re.match(r"import .*,|.*#", line) for line in imports)


def test_an_unknown_metric_and_a_folder_in_use_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'bleu' is no metric of vistok: choose cider_d"):
        metric_path("bleu")
    (tmp_path / "kept.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        export_metric("pope", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
