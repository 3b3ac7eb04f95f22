"""Loading and mixing: order, shares, workers, resumption, and exactly the bad samples skipped."""

import io
import itertools
import json
import os
import pickle
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader

from vistok.processing.images import BadSampleError, load_example_images
from vistok.trainer.data_sources import DataSource, load_data_source, mix_data_sources


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def record(index, image="good.jpg"):
    return {"id": f"s{index}", "question": f"q{index}?", "answer": "a" * (index % 7 + 1), "image": image}


def jpeg(seed=0, size=(64, 64)):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path):
    """Writes records as a JSONL source with one good image, and describes the source."""

    def write_source(records, name="rows", **fields):
        (tmp_path / "good.jpg").write_bytes(jpeg())
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in records))
        return DataSource("json", name=name, path=str(path), **fields)

    return write_source


@pytest.fixture
def bad_rows(tmp_path):
    """Twenty records of which five, in known rows, are bad, each for a reason of its own."""
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:900])
    (tmp_path / "list.jpg").write_text("eggs, flour")
    records = [record(index) for index in range(20)]
    records[2] = record(2, "cut.jpg")
    records[7] = record(7, "list.jpg")
    records[11] = record(11, "gone.jpg")
    records[13]["messages"] = [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "2"}]
    del records[17]["answer"]
    reasons = {
        2: "truncated",
        7: "not an image",
        11: "does not exist",
        13: "2 image placeholders for 1 images",
        17: "needs 'messages'",
    }
    return records, reasons


def ids(dataset):
    return [example["id"] for example in dataset]


def read(examples):
    """Reads the images as a collator does."""
    for example in examples:
        load_example_images(example)
    return [example["id"] for example in examples]


def ids_of_workers(dataset, num_workers):
    loader = DataLoader(dataset, batch_size=4, num_workers=num_workers, collate_fn=ids)
    return [name for batch in loader for name in batch]


# Order and resumption


def test_a_stream_has_the_order_of_the_file(write):
    records = [record(index) for index in range(500)]
    names = [entry["id"] for entry in records]
    assert ids(load_data_source(write(records))) == names
    stream = load_data_source(write(records, streaming=True))
    assert isinstance(stream, IterableDataset)
    assert list(stream) == list(load_data_source(write(records)))
    assert stream.num_shards > 8


@pytest.mark.parametrize("stop", [1, 9, 250])
def test_a_stream_resumes_where_it_stopped(write, stop):
    source = write([record(index) for index in range(300)], streaming=True, on_error="skip")
    stream = load_data_source(source)
    iterator = iter(stream)
    for _ in range(stop):
        next(iterator)
    state = stream.state_dict()
    rest = ids(iterator)
    resumed = load_data_source(source)
    resumed.load_state_dict(state)
    assert ids(resumed) == rest
    assert len(rest) == 300 - stop


def test_a_stream_is_complete_under_workers_and_nodes(write):
    names = sorted(f"s{index}" for index in range(101))
    stream = load_data_source(write([record(index) for index in range(101)], streaming=True))
    assert sorted(ids_of_workers(stream, 2)) == names
    nodes = [ids(split_dataset_by_node(stream, rank, 2)) for rank in range(2)]
    assert sorted(nodes[0] + nodes[1]) == names
    assert min(map(len, nodes)) > 25


def write_shards(folder, num_shards, per_shard):
    folder.mkdir()
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for index in range(per_shard):
                for member, content in (("jpg", jpeg(index, (8, 8))), ("txt", b"a caption")):
                    entry = tarfile.TarInfo(f"{index:04d}.{member}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return [f"{shard:03d}/{index:04d}" for shard in range(num_shards) for index in range(per_shard)]


def test_shards_are_split_over_workers_without_loss_and_duplicates(tmp_path):
    names = write_shards(tmp_path / "shards", num_shards=5, per_shard=7)
    source = {"format": "webdataset", "path": str(tmp_path / "shards"), "streaming": True}
    stream = load_data_source(source)
    assert ids(stream) == names
    assert sorted(ids_of_workers(stream, 2)) == names
    nodes = [ids_of_workers(split_dataset_by_node(stream, rank, 5), 1) for rank in range(5)]
    assert [sorted(node) for node in nodes] == [names[7 * rank : 7 * rank + 7] for rank in range(5)]


def test_shards_resume_where_they_stopped(tmp_path):
    names = write_shards(tmp_path / "shards", num_shards=2, per_shard=6)
    source = {"format": "webdataset", "path": str(tmp_path / "shards"), "streaming": True}
    stream = load_data_source(source)
    iterator = iter(stream)
    for _ in range(8):
        next(iterator)
    resumed = load_data_source(source)
    resumed.load_state_dict(stream.state_dict())
    assert ids(resumed) == names[8:]


def test_a_seed_shuffles_reproducibly_and_an_epoch_differs(write):
    records = [record(index) for index in range(200)]
    for streaming in (False, True):
        orders = [ids(load_data_source(write(records, seed=seed, streaming=streaming))) for seed in (3, 3, 4)]
        assert orders[0] == orders[1] != orders[2]
        assert sorted(orders[0]) == sorted(f"s{index}" for index in range(200))
    stream = load_data_source(write(records, seed=3, streaming=True))
    stream.set_epoch(1)
    assert ids(stream) != orders[0]
    assert sorted(ids(stream)) == sorted(orders[0])


@pytest.mark.parametrize("streaming", [False, True])
def test_max_samples_takes_the_first_rows_or_a_seeded_choice(write, streaming):
    records = [record(index) for index in range(100)]
    assert ids(load_data_source(write(records, max_samples=30, streaming=streaming))) == [f"s{i}" for i in range(30)]
    assert len(ids(load_data_source(write(records, max_samples=500, streaming=streaming)))) == 100
    choices = [ids(load_data_source(write(records, max_samples=30, seed=s, streaming=streaming))) for s in (1, 1, 2)]
    assert choices[0] == choices[1] != choices[2]
    assert len(set(choices[0])) == 30


def test_max_samples_of_a_stream_is_exact_under_workers(write):
    # early shards hold more rows than late ones
    records = [record(index) | {"answer": "a" * (5 * index + 1)} for index in range(100)]
    stream = load_data_source(write(records, max_samples=33, streaming=True))
    assert sorted(ids_of_workers(stream, 2)) == sorted(f"s{index}" for index in range(33))


# Bad samples


def assert_skipped(report, reasons, path):
    """The report holds exactly the planted rows, each with its reason and a file."""
    errors = sorted(report.errors(), key=lambda error: error.row)
    assert report.count == len(report) == len(reasons)
    assert [error.row for error in errors] == sorted(reasons)
    for error in errors:
        assert reasons[error.row] in error.reason
        assert error.source == "rows"
        assert os.path.dirname(error.file) == os.path.dirname(path)


@pytest.mark.parametrize("num_proc", [None, 2])
def test_skip_leaves_out_and_counts_exactly_the_bad_rows(write, bad_rows, num_proc):
    records, reasons = bad_rows
    source = write(records, on_error="skip", num_proc=num_proc)
    dataset = load_data_source(source)
    assert isinstance(dataset, Dataset)
    assert read(dataset) == [f"s{index}" for index in range(20) if index not in reasons]
    assert_skipped(dataset.skipped_samples, reasons, source.path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_counts_skips_once_over_workers_and_epochs(write, bad_rows, num_workers):
    records, reasons = bad_rows
    source = write(records, on_error="skip", streaming=True)
    stream = load_data_source(source)
    good = sorted(f"s{index}" for index in range(20) if index not in reasons)
    for epoch in range(2):
        stream.set_epoch(epoch)
        loader = DataLoader(stream, batch_size=2, num_workers=num_workers, collate_fn=read)
        assert sorted(name for batch in loader for name in batch) == good
    assert_skipped(stream.skipped_samples, reasons, source.path)


def test_the_report_spells_out_the_first_reasons(write, bad_rows):
    records, _ = bad_rows
    report = load_data_source(write(records, on_error="skip")).skipped_samples
    lines = report.summary(num_reasons=2).splitlines()
    assert lines[0] == "5 bad samples were skipped (5 of rows):"
    assert "row 2" in lines[1]
    assert "cut.jpg" in lines[1]
    assert len(lines) == 4
    clean = load_data_source(write([record(0)], on_error="skip")).skipped_samples
    assert clean.count == 0
    assert clean.summary() == "No samples were skipped."


@pytest.mark.parametrize("streaming", [False, True])
def test_raise_stops_at_a_bad_structure_when_loading_or_streaming(write, bad_rows, streaming):
    records, _ = bad_rows
    source = write(records, streaming=streaming)
    with pytest.raises(BadSampleError, match="2 image placeholders for 1 images") as raised:
        list(load_data_source(source))
    assert (raised.value.row, raised.value.file) == (13, source.path)


@pytest.mark.parametrize("streaming", [False, True])
def test_raise_stops_at_an_unreadable_image_when_it_is_read(write, bad_rows, streaming):
    records, _ = bad_rows
    dataset = load_data_source(write(records[:5], streaming=streaming))
    with pytest.raises(BadSampleError, match=r"data source 'rows', row 2, file .*cut\.jpg: .*truncated"):
        list(DataLoader(dataset, batch_size=1, collate_fn=read))


def test_the_count_survives_pickling_for_spawned_workers(write, bad_rows):
    records, reasons = bad_rows
    stream = load_data_source(write(records, on_error="skip", streaming=True))
    copy = pickle.loads(pickle.dumps(stream))
    assert len(ids(copy)) == 15
    del copy
    assert stream.skipped_samples.count == len(reasons)


def test_the_report_leaves_no_file_behind(write):
    dataset = load_data_source(write([record(0)]))
    (file,) = dataset.skipped_samples.files
    assert os.path.exists(file)
    del dataset
    assert not os.path.exists(file)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_source_that_is_empty_or_all_bad_is_an_error(write, streaming):
    with pytest.raises(ValueError, match="data source 'rows' is empty: it holds no samples"):
        load_data_source(write([], streaming=streaming))
    with pytest.raises(ValueError, match=r"(?s)is empty: nothing is left .* 2 bad samples were skipped.*gone\.jpg"):
        load_data_source(write([record(0, "gone.jpg"), record(1, "gone.jpg")], streaming=streaming, on_error="skip"))


# Mixtures


@pytest.mark.parametrize("streaming", [(False, False), (True, True), (False, True)])
def test_weights_give_their_shares_reproducibly(write, streaming):
    def mixture(seed):
        sources = [
            write([record(index) for index in range(900)], name="big", weight=6, streaming=streaming[0]),
            write([record(index) for index in range(300)], name="small", weight=2, streaming=streaming[1]),
        ]
        mixed = mix_data_sources(sources, seed=seed, shuffle_buffer=100)
        assert isinstance(mixed, IterableDataset if any(streaming) else Dataset)
        return [(example["source"], example["id"]) for example in mixed]

    draws = mixture(0)
    share = sum(name == "big" for name, _ in draws) / len(draws)
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / len(draws)) ** 0.5  # four standard deviations
    assert len(set(draws)) == 1200  # all_exhausted: every example at least once
    assert mixture(0) == draws
    assert mixture(1) != draws
    assert [name for source, name in draws if source == "big"][:20] != [f"s{index}" for index in range(20)]


def test_stopping_strategies_end_where_they_say(write):
    sources = [
        write([record(index) for index in range(50)], name="big", weight=1),
        write([record(index) for index in range(10)], name="small", weight=1),
    ]

    def counts(strategy):
        return Counter(mix_data_sources(sources, stopping_strategy=strategy)["source"])

    assert counts("first_exhausted")["small"] <= 10
    assert counts("first_exhausted")["big"] < 50
    assert counts("all_exhausted_without_replacement") == {"big": 50, "small": 10}
    assert counts("all_exhausted")["small"] > 30
    with pytest.raises(ValueError, match=r"unknown stopping_strategy 'first_exausted'; .*Did you mean"):
        counts("first_exausted")


@pytest.mark.parametrize("streaming", [False, True])
def test_without_weights_sources_are_joined_and_shuffled(write, streaming):
    def mixture(seed):
        sources = [
            write([record(index) for index in range(60)], name="one", streaming=streaming),
            write([record(index) for index in range(40)], name="two", streaming=streaming),
        ]
        return [(example["source"], example["id"]) for example in mix_data_sources(sources, seed=seed)]

    joined = mixture(5)
    expected = [(name, f"s{index}") for name, count in (("one", 60), ("two", 40)) for index in range(count)]
    assert sorted(joined) == sorted(expected)
    assert joined != expected
    assert {name for name, _ in joined[:30]} == {"one", "two"}
    assert mixture(5) == joined
    assert mixture(6) != joined


def test_a_mixed_stream_is_trained_on_in_another_order_each_pass_and_is_complete(write, model, trainer_for):
    sources = [
        write([record(index) for index in range(60)], name="one", streaming=True, weight=0.5),
        write([record(index) for index in range(60)], name="two", weight=0.5),
    ]
    mixed = mix_data_sources(sources, stopping_strategy="all_exhausted_without_replacement")
    loader = trainer_for(model, mixed, data_collator=lambda rows: [(row["source"], row["id"]) for row in rows])
    drawn = list(itertools.islice(itertools.chain.from_iterable(loader.get_train_dataloader()), 240))
    first, second = drawn[:120], drawn[120:]
    assert first != second
    assert sorted(first) == sorted(second) == sorted((name, f"s{i}") for name in ("one", "two") for i in range(60))
    assert Counter(ids_of_workers(mixed, 2)) == {f"s{index}": 2 for index in range(60)}


def test_a_mixed_stream_without_a_buffer_resumes_exactly(write):
    def mixture():
        sources = [
            write([record(index) for index in range(80)], name=name, streaming=True, weight=weight)
            for name, weight in (("one", 1), ("two", 3))
        ]
        return mix_data_sources(sources, shuffle_buffer=1)

    complete = [(example["source"], example["id"]) for example in mixture()]
    stream = mixture()
    iterator = iter(stream)
    for _ in range(41):
        next(iterator)
    resumed = mixture()
    resumed.load_state_dict(stream.state_dict())
    assert [(example["source"], example["id"]) for example in resumed] == complete[41:]


def test_a_column_of_one_source_is_empty_in_the_others(write, tmp_path):
    folder = tmp_path / "easy_vqa" / "data" / "train"
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps([["is it red?", "no", 1]] * 5))
    vqa = DataSource("easy-vqa", name="vqa", path=str(tmp_path))
    for streaming in (False, True):
        plain = write([record(index) for index in range(5)], streaming=streaming)
        for sources in ([vqa, plain], [plain, vqa]):
            kinds = {(example["source"], example["answer_type"]) for example in mix_data_sources(sources)}
            assert kinds == {("vqa", "yes/no"), ("rows", None)}


def test_a_mixture_adds_up_the_skips_of_its_sources(write, bad_rows):
    records, reasons = bad_rows
    for streaming in (False, True):
        sources = [
            write(records, on_error="skip", streaming=streaming),
            write([record(0), record(1, "gone.jpg")], name="more", on_error="skip"),
        ]
        mixed = mix_data_sources(sources)
        assert len(ids(mixed)) == 20 - len(reasons) + 1
        assert mixed.skipped_samples.count == len(reasons) + 1
        assert "5 of rows, 1 of more" in mixed.skipped_samples.summary()


def test_mixtures_that_make_no_sense_are_refused(write):
    with pytest.raises(ValueError, match="no data sources"):
        mix_data_sources([])
    with pytest.raises(ValueError, match="several data sources are called 'rows'"):
        mix_data_sources([write([record(0)]), write([record(0)])])
    with pytest.raises(ValueError, match="'two' has no weight while others do"):
        mix_data_sources([write([record(0)], weight=1), write([record(0)], name="two")])
    with pytest.raises(ValueError, match="weight of data source 'rows' must be a positive number, got -1"):
        write([record(0)], weight=-1)
