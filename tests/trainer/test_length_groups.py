"""Rows of like length come in the same step, in an order that seed and epoch decide, also of a run that resumes."""

import copy
import itertools

import pytest
from datasets import Dataset

from tests.trainer.tiny_training import largest_difference, parameters, question, questions
from vistok import VisualLanguageCollator, VisualModelingConfig
from vistok.trainer.conversation_groups import group_by_images
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.length_groups import LengthGroups, padding_share, with_lengths

LENGTHS = [(7 * row) % 50 + 10 for row in range(206)]


def order(lengths=LENGTHS, step_size=4, seed=0, epoch=0) -> list[int]:
    groups = LengthGroups(lengths, step_size, seed)
    groups.set_epoch(epoch)
    return list(groups)


def test_every_row_comes_once_and_the_longest_first():
    rows = order()
    assert sorted(rows) == list(range(206))
    assert max(LENGTHS) == LENGTHS[rows[0]]


def test_seed_and_epoch_decide_the_order():
    orders = [order(), order(), order(seed=1), order(epoch=1)]
    assert orders[0] == orders[1] and len(set(map(tuple, orders))) == 3


def test_most_of_the_padding_is_saved_and_steps_of_all_lengths_are_mixed():
    shuffled = order([1] * 206)
    assert padding_share(LENGTHS, order(), 4) < 0.25 * padding_share(LENGTHS, shuffled, 4)
    starts = [LENGTHS[row] for row in order()[4:-2:4]]
    assert sum(a < b for a, b in itertools.pairwise(starts)) > len(starts) / 4  # not one descent


def test_padding_is_counted_by_hand():
    assert padding_share([2, 4, 1], [0, 1, 2], 2) == pytest.approx(1 - 7 / 9)


@pytest.mark.parametrize("few", [1, 3, 4, 5])
def test_few_rows_come_all(few):
    assert sorted(order(LENGTHS[:few])) == list(range(few))


@pytest.mark.parametrize("per_row", [1, 3])
def test_lengths_are_those_of_the_batch_images_counted(processor, trainer_for, model, per_row):
    data = group_by_images(questions(6, per_image=3), per_row) if per_row > 1 else questions(6, per_image=3)
    collator = VisualLanguageCollator(processor)
    args = trainer_for(model).args
    told = with_lengths(data, collator, args)["length"]
    assert list(told) == [collator([row])["input_ids"].shape[1] for row in data]
    assert processor.num_image_tokens < min(told)


def test_a_run_that_is_resumed_in_its_second_epoch_ends_as_it_would_have(model, trainer_for, tmp_path):
    rows = [question(i, i, "is there a dog? " * (1 + i % 4)) for i in range(8)]
    data = Dataset.from_list(rows, features=FEATURES)
    options = {"train_sampling_strategy": "group_by_length", "max_steps": 7, "save_strategy": "steps", "save_steps": 6}
    options |= {"augment": True}
    first = copy.deepcopy(model)
    whole = trainer_for(model, data, **options)
    whole.train()
    resumed = trainer_for(first, data, **options)
    resumed.train(str(tmp_path / "run" / "checkpoint-6"))
    assert largest_difference(parameters(model), parameters(first)) == 0


def test_a_stream_has_no_lengths(model, trainer_for):
    with pytest.raises(ValueError, match="train_sampling_strategy group_by_length needs data of known size"):
        trainer_for(model, questions(4).to_iterable_dataset(), train_sampling_strategy="group_by_length")


def test_a_collator_that_tells_no_lengths_is_named(model, trainer_for):
    with pytest.raises(ValueError, match="list has no method `length`"):
        with_lengths(questions(2), [], trainer_for(model, train_sampling_strategy="group_by_length").args)


def test_images_alone_have_no_lengths_to_group(tmp_path):
    with pytest.raises(ValueError, match="train_sampling_strategy is 'group_by_length', but the stage visual_tokens"):
        VisualModelingConfig(
            output_dir=str(tmp_path), use_cpu=True, stage="visual_tokens", train_sampling_strategy="group_by_length"
        )
