"""What the collator refuses of a source that skips bad samples is left out and counted; of others it raises."""

import json

import datasets
import pytest
from datasets import IterableDataset

from tests.tiny import image_bytes
from vistok import VisualLanguageCollator
from vistok.processing.images import BadSampleError
from vistok.trainer.data_sources import load_data_source, mix_data_sources
from vistok.trainer.refused_samples import leave_out_refused


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two sources of four questions each, of which the third is too long for its answer."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "0.png").write_bytes(image_bytes(0)["bytes"])
    records = [
        {"image": "0.png", "question": "how many? " * (1 if row != 2 else 60), "answer": "two"} for row in range(4)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(**fields):
        common = {"format": "json", "path": str(path), **fields}
        return [{**common, "name": "skips", "on_error": "skip"}, {**common, "name": "raises"}]

    return make


def names(dataset) -> list[tuple[str, int]]:
    return sorted((example["source"], example["row"]) for example in dataset)


@pytest.mark.parametrize("streaming", [False, True])
def test_questions_too_long_for_an_answer_are_left_out_of_sources_that_skip(sources, processor, streaming):
    mixed = mix_data_sources(sources(streaming=streaming))
    left = leave_out_refused(mixed, VisualLanguageCollator(processor, max_length=60))
    assert isinstance(left, IterableDataset) == streaming
    assert names(left) == [("raises", row) for row in range(4)] + [("skips", row) for row in (0, 1, 3)]
    (error,) = mixed.skipped_samples.errors()
    assert (error.source, error.row) == ("skips", 2) and "no answer is left" in error.reason
    assert len(names(leave_out_refused(mixed, VisualLanguageCollator(processor)))) == 8


@pytest.mark.parametrize("streaming", [False, True])
def test_a_training_goes_past_them_also_in_evaluation(sources, model, trainer_for, streaming):
    skipping, _ = sources()
    data, held_out = load_data_source(skipping | {"streaming": streaming}), load_data_source(skipping)
    trainer = trainer_for(model, data, {"held_out": held_out}, max_length=60, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.evaluate()["eval_held_out_loss"] > 0
    assert data.skipped_samples.count == held_out.skipped_samples.count == 1


def test_where_bad_samples_raise_the_error_names_row_and_file(sources, model, trainer_for, tmp_path):
    _, raising = sources()
    trainer = trainer_for(model, load_data_source(raising), max_length=60)
    with pytest.raises(BadSampleError, match="no answer is left to learn from") as caught:
        trainer.train()
    assert (caught.value.source, caught.value.row) == ("raises", 2)
    assert caught.value.file == str(tmp_path / "0.png")


def test_a_source_of_which_nothing_is_left_is_an_error(sources, processor):
    skipping, _ = sources()
    with pytest.raises(ValueError, match=r"(?s)nothing is left to train on\. 4 bad samples were skipped.*no answer"):
        leave_out_refused(load_data_source(skipping), VisualLanguageCollator(processor, max_length=8))
