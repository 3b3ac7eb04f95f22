"""Checkpoints of several files are read one file at a time, and written tensor by tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.modeling.published_llava import TINY_TOWER, random_checkpoint, save_checkpoint, tiny_config
from vistok.modeling.checkpoint_shards import ShardedCheckpoint, ShardWriter
from vistok.modeling.trained_weights import CheckpointError


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(5, 7, generator=generator),
        "b": torch.randn(3, generator=generator).to(torch.bfloat16),
        "c": torch.randn(2, 3, 4, generator=generator).to(torch.float16),
        "d": torch.randn((), generator=generator).double(),
        "e": torch.randn(0, 4, generator=generator),
    }


def written(folder, given, max_shard_size=10**9):
    folder.mkdir()
    writer = ShardWriter(folder, {name: (value.shape, value.dtype) for name, value in given.items()}, max_shard_size)
    for name, value in given.items():
        writer.write(name, [value])
    writer.finish()
    return folder


def save_shards(folder, *parts, listed=()):
    folder.mkdir()
    weight_map = {}
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    index = {"weight_map": weight_map | dict.fromkeys(listed, "model-0.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_one_file_is_what_safetensors_reads(tmp_path):
    given = {name: value for name, value in tensors().items() if name in "ace"}
    folder = written(tmp_path / "one", given)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    found = load_file(folder / "model.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("size", [1, 50, 160, 10**9])
def test_files_are_no_larger_than_asked_for_and_are_read_again(tmp_path, size):
    given = tensors()
    folder = written(tmp_path / "several", given, size)
    found = dict(ShardedCheckpoint(folder).read())
    assert list(found) == list(given) and all(torch.equal(found[name], given[name]) for name in given)
    for path in folder.glob("*.safetensors"):
        held = load_file(path).values()
        assert sum(value.numel() * value.itemsize for value in held) <= size or len(held) == 1


def test_numbers_of_another_size_start_where_they_can_be_mapped(tmp_path):
    given = {"short": torch.randn(3).half(), "long": torch.randn(4).double(), "middle": torch.randn(5)}
    assert len(list(written(tmp_path / "out", given).glob("*.safetensors"))) == 2


def test_a_tensor_may_come_in_parts(tmp_path):
    whole = torch.randn(10, 3)
    writer = ShardWriter(tmp_path, {"x": (whole.shape, whole.dtype)})
    writer.write("x", (part.t().contiguous().t() for part in whole.split(4)))
    writer.finish()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["x"], whole)


def test_what_was_not_announced_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, {"x": (torch.Size([2]), torch.float32), "y": (torch.Size([2]), torch.float32)})
    with pytest.raises(ValueError, match="y was written where x was announced"):
        writer.write("y", [torch.zeros(2)])
    writer = ShardWriter(tmp_path, {"x": (torch.Size([2]), torch.float32)})
    with pytest.raises(ValueError, match="x has 12 bytes, announced were 8"):
        writer.write("x", [torch.zeros(3)])
    writer = ShardWriter(tmp_path, {"x": (torch.Size([2]), torch.float32)})
    with pytest.raises(ValueError, match=r"has dtype torch.float16, announced was torch.float32"):
        writer.write("x", [torch.zeros(2).half()])
    writer = ShardWriter(tmp_path, {"x": (torch.Size([2]), torch.float32)})
    with pytest.raises(ValueError, match="x was announced and not written"):
        writer.finish()


def test_what_is_stored_is_known_before_it_is_read(tmp_path):
    given = tensors()
    checkpoint = ShardedCheckpoint(save_shards(tmp_path / "x", {"a": given["a"]}, {"b": given["b"], "c": given["c"]}))
    assert {name: tuple(stored.shape) for name, stored in checkpoint.stored.items()} == {
        "a": (5, 7),
        "b": (3,),
        "c": (2, 3, 4),
    }
    assert checkpoint.stored["b"].dtype == torch.bfloat16
    assert [name for name, _ in checkpoint.read()] == list(checkpoint.stored)


def test_wrong_indexes_are_told(tmp_path):
    given = tensors()
    folder = save_shards(tmp_path / "listed", {"a": given["a"]}, listed=["model.layers.0.x", "model.layers.1.x"])
    with pytest.raises(CheckpointError, match=r"lack weights that their index lists.*model.layers.\{0-1\}.x"):
        ShardedCheckpoint(folder)
    twice = save_shards(tmp_path / "twice", {"a": given["a"], "c": given["c"]}, {"a": given["a"], "b": given["b"]})
    with pytest.raises(CheckpointError, match=r"a is both in .*model-0.safetensors and in .*model-1.safetensors"):
        ShardedCheckpoint(twice)
    index = folder / "model.safetensors.index.json"
    for content in ("", "[]", '{"weight_map": 3}', '{"metadata": {}}'):
        index.write_text(content)
        with pytest.raises(CheckpointError, match="truncated or no index of weights"):
            ShardedCheckpoint(folder)
    index.write_text('{"weight_map": {"a": "../listed/model-0.safetensors"}}')
    with pytest.raises(CheckpointError, match="expected files in its own folder"):
        ShardedCheckpoint(folder)


MEASURE = """
import json, sys
from pathlib import Path
from transformers.utils import logging
from vistok.modeling import published_llava
from vistok.modeling.convert_vtlmm import convert_llava
logging.disable_progress_bar()
published_llava.PUBLISHED_TOWERS["openai/clip-vit-large-patch14-336"] = json.loads(sys.argv[1])
def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
convert_llava("small", "small-out")  # whatever is imported or cached on the way is in memory now
for folder in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = memory("VmRSS")
    convert_llava(folder, folder + "-out")
    print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux counts peak memory")
def test_converting_takes_less_memory_than_twice_the_largest_file(tmp_path):
    name = "vw_lmm_vicuna_7b"
    save_checkpoint(tmp_path / "small", random_checkpoint(name), tiny_config(name))
    # 12 layers of 15 MB each
    config = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = tiny_config(name, num_key_value_heads=8, **config)
    sizes = {"hidden": 512, "kv": 512, "inner": 4096, "num_layers": 12}
    tensors = random_checkpoint(name, dtype=torch.float16, **sizes)
    largest = {}
    for kind, options in {
        "bin": {"suffix": ".bin"},
        "old-bin": {"suffix": ".bin", "old_format": True},
        "safetensors": {"suffix": ".safetensors"},
    }.items():
        save_checkpoint(tmp_path / kind, tensors, config, num_shards=6, **options)
        files = [path.stat().st_size for path in (tmp_path / kind).glob(f"*{options['suffix']}")]
        largest[kind] = max(files)
        assert sum(files) > 3 * max(files) > 1e8
    arguments = [sys.executable, "-c", MEASURE, json.dumps(TINY_TOWER), *largest]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    for kind, taken in zip(largest, map(int, result.stdout.split()), strict=True):
        assert 0 < taken < 2 * largest[kind], f"{kind}: {taken / 1e6:.0f} MB, files of {largest[kind] / 1e6:.0f} MB"
        print(f"{kind}: {taken / 1e6:.0f} MB, files of {largest[kind] / 1e6:.0f} MB")
