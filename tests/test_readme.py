"""The README: its Python runs, its commands are complete, its links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""


def python_blocks() -> list:
    """Every fenced Python block, compiled so that a traceback shows its line of the README."""
    blocks = []
    for match in re.finditer(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL):
        line = TEXT.count("\n", 0, match.start(1)) + 1
        tree = ast.increment_lineno(ast.parse(match[1]), line - 1)
        blocks.append(pytest.param(compile(tree, str(README), "exec"), id=f"line {line}"))
    return blocks


def marked_command(name: str) -> list[str]:
    """The lines of the fenced block behind the comment `<!-- name -->`."""
    match = re.search(rf"<!-- {name} -->\s*```\w*\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert match, f"README.md has no fenced block behind <!-- {name} -->"
    return match[1].splitlines()


@pytest.fixture(scope="module")
def namespace() -> dict:
    """Names that one block leaves for the next, as for somebody who pastes them one after the other."""
    return {"__name__": "__main__"}


@pytest.fixture(scope="module")
def working_directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.real_weights
@pytest.mark.parametrize("block", python_blocks())
def test_every_python_block_runs_as_printed_after_those_above_it(block, namespace, working_directory, monkeypatch):
    monkeypatch.chdir(working_directory)
    exec(block, namespace)


@pytest.mark.parametrize("name", ["main command", "test command"])
def test_each_of_the_two_commands_does_its_own_setup_in_one_line(name):
    (command,) = marked_command(name)
    steps = [step.strip() for step in command.split("&&")]
    assert steps[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert steps[2].startswith("pip install -c constraints/cpu.txt ")


def test_every_link_into_the_repository_leads_to_a_file():
    links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", TEXT)
    local = {first or second for first, second in links if "://" not in first + second}
    assert {link for link in local if not (ROOT / link).exists()} == set()


def test_every_file_that_a_command_names_exists():
    shell_blocks = re.findall(r"^```(?:bash|sh|console|shell)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    words = {word.strip("\"'`") for block in shell_blocks for word in block.split()}
    named = {
        word for word in words if re.fullmatch(r"(recipes|examples|benchmarks|constraints|checkpoints)/[\w./-]+", word)
    }
    assert {word for word in named if not (ROOT / word).exists()} == set()
