"""Two processes compute the features of a frozen tower together, each of them half."""

import json
from pathlib import Path

import pytest
import torch

from tests.processes import run_in_two_processes
from tests.trainer.feature_cache_two_processes import builder
from vistok.processing.feature_cache import FeatureCache


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two processes")
    run_in_two_processes("tests.trainer.feature_cache_two_processes", str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return builder(str(tmp_path_factory.mktemp("alone")), []).build()


def has_what(cache: FeatureCache, other: FeatureCache) -> bool:
    return set(cache) == set(other) and all(torch.allclose(cache[key], other[key], atol=1e-6) for key in other)


def test_each_process_computes_its_share_and_reads_what_one_process_computes(outcomes, alone):
    assert [one["common"]["sizes"] for one in outcomes] == [[2, 2, 2], [2, 2, 1]]
    folder = {one["common"]["folder"] for one in outcomes}
    assert len(folder) == 1 and has_what(FeatureCache(folder.copy().pop()), alone)
    assert [path.name for path in Path(folder.pop()).parent.iterdir()] == [alone.folder.name], "no parts are left"


def test_nothing_is_computed_where_the_cache_is_there(outcomes):
    assert [one["again"]["sizes"] for one in outcomes] == [[], []]


def test_machines_without_a_common_folder_have_a_whole_cache_each(outcomes, alone):
    folders = [Path(one["own"]["folder"]) for one in outcomes]
    assert folders[0] != folders[1] and all(has_what(FeatureCache(folder), alone) for folder in folders)
    assert [sum(one["own"]["sizes"]) for one in outcomes] == [11, 11]
    assert [len(list(folder.parent.iterdir())) for folder in folders] == [1, 1]


def test_an_unreadable_image_of_one_process_ends_all_of_them_with_its_name(outcomes):
    assert all("row 3" in one["error"] for one in outcomes)
