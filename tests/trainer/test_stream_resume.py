"""A training on streams that is killed and resumed meets each example that it would have met, once, in order."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from tests.processes import REPOSITORY, run_in_two_processes
from tests.trainer.stream_runs import NUM_EXAMPLES, listen, write_sources
from vistok.modeling.trained_weights import CheckpointError
from vistok.trainer import data_records, shuffled_windows
from vistok.trainer.data_sources import load_data_source, mix_data_sources
from vistok.trainer.endless_stream import EndlessStream


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


def each_pass_is_whole(met: list[str]) -> bool:
    """Whether no example comes again before all have come."""
    passes = [met[start : start + NUM_EXAMPLES] for start in range(0, len(met), NUM_EXAMPLES)]
    return all(max(Counter(one).values()) == 1 for one in passes) and len(set(passes[0])) == NUM_EXAMPLES


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_meets_what_the_whole_one_meets(sources, tmp_path, workers):
    whole = listen(sources, str(tmp_path / "whole"), workers)
    whole.train()
    met = list(itertools.chain.from_iterable(whole.met))
    if workers == 0:
        assert each_pass_is_whole(met)
    for step in (14,) if workers else (7, 14):  # in the first pass, and in the second
        resumed = listen(sources, str(tmp_path / "whole"), workers, save_strategy="no")
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.met == whole.met[2 * step :]
        assert resumed.model.weight.item() == whole.model.weight.item()


def test_a_stream_begins_anew_where_no_data_is_to_be_skipped(sources, tmp_path):
    whole = listen(sources, str(tmp_path), 0, max_steps=9)
    whole.train()
    again = listen(sources, str(tmp_path), 0, ignore_data_skip=True, max_steps=9)
    again.train(str(tmp_path / "checkpoint-7"))
    assert again.met[:4] == whole.met[:4]


def test_no_example_is_lost_or_met_twice_by_a_training_that_was_killed(sources, tmp_path):
    command = [sys.executable, "-m", "tests.trainer.stream_runs", "killed", json.dumps(sources), str(tmp_path)]
    killed = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    before = [json.loads(line) for line in (tmp_path / "met_0.jsonl").read_text().splitlines()]
    assert len(before) == 2 * 9  # two steps behind the last checkpoint
    resumed = listen(sources, str(tmp_path), workers=2)
    resumed.train("auto")
    trained = list(itertools.chain.from_iterable(before[: 2 * 7] + resumed.met))
    assert trained == uninterrupted(sources, len(trained))
    # Workers end their first passes within a few batches of one another: then all have come, none often.
    counts = Counter(trained)
    assert len(counts) == NUM_EXAMPLES and max(counts.values()) <= 3


def uninterrupted(sources, count: int) -> list[str]:
    """What two workers give out, by a loader that nothing interrupts."""
    weighted = [{**source, "weight": 1.0} for source in sources]
    stream = EndlessStream(mix_data_sources(weighted, 3, "all_exhausted_without_replacement", shuffle_buffer=5))
    loader = DataLoader(stream, batch_size=2, num_workers=2, collate_fn=list)
    batches = itertools.islice(loader, count // 2)
    return [f"{example['source']}:{example['id']}" for batch in batches for example in batch]


def test_each_of_two_processes_goes_on_with_its_own_examples(sources, tmp_path):
    run_in_two_processes("tests.trainer.stream_runs", "both", json.dumps(sources), str(tmp_path))
    for workers in (0, 2):
        found = {
            (part, rank): json.loads((tmp_path / f"{part}-{workers}-{rank}.json").read_text())
            for part in ("whole", "resumed")
            for rank in (0, 1)
        }
        for rank in (0, 1):
            assert found["resumed", rank]["met"] == found["whole", rank]["met"][2 * 7 :]
            assert found["resumed", rank]["weight"] == found["whole", rank]["weight"]
        if workers == 0:
            met = [list(itertools.chain.from_iterable(found["whole", rank]["met"])) for rank in (0, 1)]
            first = [of_rank[: NUM_EXAMPLES // 2] for of_rank in met]
            assert len({*first[0], *first[1]}) == NUM_EXAMPLES


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"dataloader_num_workers": 2}, "data loader workers"),
        ({"per_device_train_batch_size": 4}, "examples per batch"),
    ],
)
def test_a_stream_is_not_resumed_in_another_division(sources, tmp_path, changed, name):
    listen(sources, str(tmp_path), 0, max_steps=7).train()
    with pytest.raises(CheckpointError, match=f"{name}, this one has"):
        listen(sources, str(tmp_path), 0, **changed).train(True)


def left_at(dataset, count: int):
    """The rest of a stream, by itself and by another that loads its state, as JSON keeps it."""
    examples = iter(dataset)
    for _ in range(count):
        next(examples)
    state = json.loads(json.dumps(dataset.state_dict()))
    return [example["id"] for example in examples], state


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "json", "joined", "weighted"])
def test_a_stream_of_every_kind_goes_on_from_its_state_anywhere(sources, kind):
    def make():
        if kind in ("joined", "weighted"):
            weights = {} if kind == "joined" else {"weight": 1.0}
            stream = mix_data_sources([{**source, **weights} for source in sources], seed=1, shuffle_buffer=5)
        else:
            (described,) = (source for source in sources if source["format"] == kind)
            stream = load_data_source({**described, "seed": 2, "shuffle_buffer": 3})
        stream.set_epoch(1)
        return stream

    for count in (0, 4, 13):
        rest, state = left_at(make(), count)
        restored = make()
        restored.load_state_dict(state)
        assert [example["id"] for example in restored] == rest


def test_going_on_reads_no_more_than_a_window_and_the_shards_it_is_in(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"question": "Which?", "answer": str(i)}) + "\n" for i in range(640)))
    described = {"format": "json", "path": str(path), "streaming": True, "seed": 0, "shuffle_buffer": 20}
    rest, state = left_at(load_data_source(described), 600)
    restored, read = load_data_source(described), Counter()
    read_lines = data_records._read_lines

    def counting(span):
        for row, record in read_lines(span):
            read[row] += 1
            yield row, record

    monkeypatch.setattr(data_records, "_read_lines", counting)
    restored.load_state_dict(state)
    assert [example["id"] for example in restored] == rest
    assert sum(read.values()) <= 40 + 20 + 10 * 10  # what is left, a window, and ten shards of ten lines


def test_windows_hold_the_examples_of_the_stream_and_follow_seed_and_epoch(sources):
    (described,) = (source for source in sources if source["format"] == "parquet")
    plain = load_data_source(described)
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1)):
        stream = shuffled_windows.shuffle_stream(plain, seed, 6)
        stream.set_epoch(epoch)
        orders.append([example["id"] for example in stream])
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(f"p{i}" for i in range(16)) for order in orders)


def test_ids_of_a_stream_are_those_of_the_data_set_and_tell_examples_apart(sources):
    for described in sources:
        streamed = [example["id"] for example in load_data_source(described)]
        whole = [example["id"] for example in load_data_source({**described, "streaming": False})]
        assert streamed == whole and len(set(streamed)) == 16


def test_rows_of_parquet_are_those_of_the_file_in_every_worker(sources):
    (described,) = (source for source in sources if source["format"] == "parquet")
    loader = DataLoader(load_data_source(described), batch_size=2, num_workers=3, collate_fn=list)
    rows = sorted((example["row"], example["id"]) for batch in loader for example in batch)
    assert rows == [(row, f"p{row}") for row in range(16)]


def test_more_workers_than_shards_leave_some_idle_and_resume_all_the_same(sources, tmp_path):
    (described,) = (source for source in sources if source["format"] == "parquet")
    whole = listen([described], str(tmp_path), 5, max_steps=9)  # of four shards
    whole.train()
    resumed = listen([described], str(tmp_path), 5, max_steps=9)
    resumed.train(str(tmp_path / "checkpoint-7"))
    assert resumed.met == whole.met[14:]


def test_a_checkpoint_that_says_nothing_of_streams_is_resumed_by_reading_again(sources, tmp_path):
    whole = listen(sources, str(tmp_path), 0, max_steps=14)
    whole.train()
    (Path(tmp_path) / "checkpoint-7" / "stream_state_0.json").unlink()
    resumed = listen(sources, str(tmp_path), 0, max_steps=14)
    resumed.train(str(tmp_path / "checkpoint-7"))
    assert resumed.met == whole.met[14:]
