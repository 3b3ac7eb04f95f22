"""Streams are passed over without end, each time in another order, which nothing but the stream decides."""

import itertools
import pickle

from datasets import interleave_datasets
from torch.utils.data import DataLoader

from tests.trainer.tiny_training import questions
from vistok.trainer.endless_stream import EndlessStream, has_exact_state
from vistok.trainer.seeded_augmentation import number_examples
from vistok.trainer.shuffled_windows import shuffle_stream


def stream(count=12, num_shards=4, buffer_size=3):
    return questions(count).to_iterable_dataset(num_shards=num_shards).shuffle(seed=1, buffer_size=buffer_size)


def ids(examples) -> list[str]:
    return [example["id"] for example in examples]


def drawn(dataset, count, num_workers=0) -> list[str]:
    loader = DataLoader(dataset, batch_size=1, num_workers=num_workers, collate_fn=ids)
    return list(itertools.islice(itertools.chain.from_iterable(loader), count))


def test_each_pass_is_the_epoch_of_its_number():
    expected = []
    for epoch in range(3):
        source = stream()
        source.set_epoch(epoch)
        expected += ids(source)
    assert drawn(EndlessStream(stream()), 36) == expected
    assert sorted(expected[:12]) == sorted(expected[12:24]) != expected[:12] != expected[12:24] != expected[24:]


def test_workers_that_are_in_different_passes_do_not_disturb_one_another():
    # Three shards for two workers: one of them is ahead of the other from the first pass on.
    endless = EndlessStream(stream(9, num_shards=3))
    first = drawn(endless, 60, num_workers=2)
    assert drawn(endless, 60, num_workers=2) == first
    alone = [ids(itertools.islice(EndlessStream(stream(9, num_shards=3)), 9))]
    assert set(first) == set(alone[0])


def test_a_worker_without_shards_ends():
    endless = EndlessStream(stream(4, num_shards=1))
    assert sorted(drawn(endless, 8, num_workers=2)) == sorted(ids(stream(4)) * 2)


def test_processes_have_their_own_shards_in_every_pass():
    parts = [EndlessStream(stream()).shard(2, index) for index in range(2)]
    assert all(isinstance(part, EndlessStream) for part in parts)
    first, second = (drawn(part, 12) for part in parts)
    assert sorted(first[:6] + second[:6]) == sorted(first[6:] + second[6:]) == sorted(f"q{i}" for i in range(12))


def test_processes_take_turns_with_fewer_shards_than_there_are_of_them():
    parts = [drawn(EndlessStream(stream(12, num_shards=1)).shard(3, index), 8) for index in range(3)]
    for start in (0, 4):
        assert sorted(name for part in parts for name in part[start : start + 4]) == sorted(f"q{i}" for i in range(12))


def test_positions_are_counted_over_all_passes():
    numbered = pickle.loads(pickle.dumps(number_examples(EndlessStream(stream(3, 1)))))
    assert [example["position"] for example in itertools.islice(numbered, 7)] == list(range(7))
    assert "position" not in next(iter(EndlessStream(stream())))


def test_a_buffer_of_datasets_is_in_no_state():
    plain = questions(12).to_iterable_dataset(num_shards=2)
    assert has_exact_state(plain) and has_exact_state(shuffle_stream(plain, 0, 3).map(lambda example: example))
    assert has_exact_state(EndlessStream(interleave_datasets([plain, plain])))
    assert not has_exact_state(EndlessStream(interleave_datasets([plain, stream()]).map(lambda example: example)))
