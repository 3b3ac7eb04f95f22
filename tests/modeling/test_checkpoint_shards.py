"""Checkpoints of several files are read one file at a time, and written tensor by tensor."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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
import json, resource, sys
from pathlib import Path
from transformers.utils import logging
from vistok.modeling import published_llava
from vistok.modeling.convert_vtlmm import convert_llava
logging.disable_progress_bar()
folder = Path(sys.argv[1])
published_llava.PUBLISHED_TOWERS["openai/clip-vit-large-patch14-336"] = json.loads(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
convert_llava(folder / "small", folder / "small-out")  # whatever is imported or cached on the way is in memory now
before = peak()
convert_llava(folder / "large", folder / "large-out")
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted in other units elsewhere")
@pytest.mark.parametrize("suffix, old_format", [(".bin", False), (".bin", True), (".safetensors", False)])
def test_converting_takes_less_memory_than_twice_the_largest_file(tmp_path, suffix, old_format):
    from tests.modeling.published_llava import TINY_TOWER, random_checkpoint, save_checkpoint, tiny_config

    name = "vw_lmm_vicuna_7b"
    options = {"suffix": suffix, "old_format": old_format}
    save_checkpoint(tmp_path / "small", random_checkpoint(name), tiny_config(name), **options)
    # 12 layers of 15 MB each
    large = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
    sizes = {"hidden": 512, "kv": 512, "inner": 4096, "num_layers": 12}
    tensors = random_checkpoint(name, dtype=torch.float16, **sizes)
    config = tiny_config(name, num_key_value_heads=8, **large)
    folder = save_checkpoint(tmp_path / "large", tensors, config, num_shards=6, **options)
    del tensors
    largest = max(path.stat().st_size for path in folder.glob(f"*{suffix}"))
    total = sum(path.stat().st_size for path in folder.glob(f"*{suffix}"))
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(TINY_TOWER)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    taken = int(result.stdout)
    assert total > 3 * largest > 1e8
    print(f"{taken / 1e6:.0f} MB for files of {largest / 1e6:.0f} MB")
    assert taken < 2 * largest, f"{taken / 1e6:.0f} MB for files of {largest / 1e6:.0f} MB"
