"""Formats whose answer is an image yield the images, texts and masks that were planted in tiny files."""

import inspect
import json
import os
import pickle

import datasets
import numpy as np
import pytest

from tests.trainer.planted_data import assert_canonical, colour, colours, image_part, png, user, write_images
from vistok.processing.images import BadSampleError
from vistok.processing.processing_setokim import SetokimProcessor
from vistok.trainer.data_sources import load_data_source, mix_data_sources
from vistok.trainer.image_answers import TASK_PROMPTS, read_mask
from vistok.trainer.referring_expressions import read_references
from vistok.trainer.scene_annotations import run_lengths

DRAWN = {"role": "assistant", "content": [image_part()]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_prompts_are_those_that_the_processor_asks_with():
    names = {"generate": "generation", "edit": "editing", "segment": "segmentation"}
    asked = inspect.signature(SetokimProcessor.__init__).parameters
    assert {
        task: asked[f"{name}_instruction"].default.replace("{}", "{question}") for task, name in names.items()
    } == TASK_PROMPTS


class TestGenerationPairs:
    @pytest.fixture
    def captions(self, tmp_path):
        write_images(tmp_path)
        records = [{"image": "0.png", "caption": "A green square."}, {"image": "1.png", "caption": " Another. "}]
        (tmp_path / "captions.json").write_text(json.dumps(records))
        return tmp_path / "captions.json"

    def test_a_caption_asks_for_its_image(self, captions):
        first, second = assert_canonical(load_data_source({"format": "generation-pairs", "path": str(captions)}))
        assert first["messages"] == [user("Generate an image: A green square."), DRAWN]
        assert second["messages"] == [user("Generate an image: Another."), DRAWN]
        assert [first["task"], colours(first), colours(second)] == ["generate", [colour(0)], [colour(1)]]

    def test_prompt_is_around_the_caption(self, captions):
        source = {"format": "generation-pairs", "path": str(captions), "prompt": "Draw. {question}"}
        assert load_data_source(source)[0]["messages"][0] == user("Draw. A green square.")

    def test_coco_captions_are_turned_round_too(self, tmp_path):
        write_images(tmp_path / "images")
        captions = [{"id": 5, "image_id": 3, "caption": "Third."}]
        document = {"images": [{"id": 3, "file_name": "2.png"}], "annotations": captions}
        (tmp_path / "captions.json").write_text(json.dumps(document))
        source = {"format": "generation-pairs", "path": str(tmp_path / "captions.json")}
        (example,) = assert_canonical(load_data_source({**source, "options": {"of": "coco-captions"}}))
        assert (example["id"], colours(example)) == ("5", [colour(2)])

    def test_a_conversation_of_two_questions_is_no_pair(self, tmp_path):
        write_images(tmp_path)
        turns = [{"from": who, "value": text} for who, text in (("human", "<image>A?"), ("gpt", "B."))]
        records = [{"image": "0.png", "conversations": turns}, {"image": "0.png", "conversations": [*turns, *turns]}]
        records[1]["conversations"] = [*turns, {"from": "human", "value": "C?"}, {"from": "gpt", "value": "D."}]
        (tmp_path / "talks.json").write_text(json.dumps(records))
        source = {"format": "generation-pairs", "path": str(tmp_path / "talks.json"), "options": {"of": "llava"}}
        with pytest.raises(BadSampleError, match=r"row 1.*1 images and 4 turns"):
            load_data_source(source)
        kept = load_data_source({**source, "on_error": "skip"})
        assert len(kept) == 1 and kept.skipped_samples.count == 1

    def test_the_format_of_the_captions_must_be_another(self, captions):
        with pytest.raises(ValueError, match="is the format itself"):
            load_data_source(
                {"format": "generation-pairs", "path": str(captions), "options": {"of": "generation-pairs"}}
            )


class TestInstructPix2Pix:
    @pytest.fixture
    def folder(self, tmp_path):
        names = [f"{number:07d}" for number in range(20)]
        for number, name in enumerate(names):
            (tmp_path / name).mkdir()
            (tmp_path / name / "prompt.json").write_text(json.dumps({"edit": f"edit {number}", "input": "x"}))
            for part in range(2):
                (tmp_path / name / f"77_{part}.jpg").write_bytes(png(2 * number % 20 + part))
        (tmp_path / "seeds.json").write_text(json.dumps([[name, ["77"]] for name in names]))
        return tmp_path

    def test_a_folder_gives_source_instruction_and_edited_image(self, folder):
        examples = assert_canonical(load_data_source({"format": "instruct-pix2pix", "path": str(folder)}))
        assert len(examples) == 20
        assert examples[3]["messages"] == [user(image_part(), "Edit the image: edit 3"), DRAWN]
        assert colours(examples[3]) == [colour(6), colour(7)]
        assert (examples[3]["task"], examples[3]["id"]) == ("edit", "0000003/77")

    def test_splits_are_the_first_ninety_percent_and_twice_five(self, folder):
        ids = {}
        for split in ("train", "val", "test"):
            source = {"format": "instruct-pix2pix", "path": str(folder), "split": split}
            ids[split] = [example["id"][:7] for example in load_data_source(source)]
        assert {split: len(found) for split, found in ids.items()} == {"train": 18, "val": 1, "test": 1}
        assert ids["test"] == ["0000019"]

    def test_a_changed_instruction_is_read_anew(self, folder):
        source = {"format": "instruct-pix2pix", "path": str(folder)}
        load_data_source(source)
        (folder / "0000000" / "prompt.json").write_text(json.dumps({"edit": "something else"}))
        assert load_data_source(source)[0]["messages"][0] == user(image_part(), "Edit the image: something else")

    @pytest.mark.parametrize(
        ("break_it", "message"),
        [
            (lambda place: (place / "prompt.json").write_text("{"), "row 2.*prompt.json cannot be read"),
            (lambda place: (place / "prompt.json").write_text("{}"), "instruction as 'edit'"),
            (lambda place: (place / "prompt.json").write_text('{"edit": " "}'), "the text to edit is ' '"),
            (lambda place: os.remove(place / "77_1.jpg"), "there is no image 77_1.jpg"),
        ],
    )
    def test_what_is_damaged_is_named_or_skipped(self, folder, break_it, message):
        break_it(folder / "0000002")
        source = {"format": "instruct-pix2pix", "path": str(folder)}
        with pytest.raises(BadSampleError, match=message):
            load_data_source(source)
        assert len(load_data_source({**source, "on_error": "skip"})) == 19

    def test_a_folder_of_something_else_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"neither seeds.json"):
            load_data_source({"format": "instruct-pix2pix", "path": str(tmp_path)})
        (tmp_path / "seeds.json").write_text('{"a": 1}')
        with pytest.raises(ValueError, match="list of \\[name, \\[seeds\\]\\]"):
            load_data_source({"format": "instruct-pix2pix", "path": str(tmp_path)})

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("name", ["original_image", "input_image", "before"])
    def test_tables_by_their_columns(self, tmp_path, name, streaming):
        columns = {
            name: [{"path": None, "bytes": png(0)}, {"path": None, "bytes": png(2)}],
            "edit_prompt": ["one", "two"],
            "edited_image": [{"path": None, "bytes": png(1)}, {"path": None, "bytes": png(3)}],
        }
        features = {name: datasets.Image(), "edit_prompt": datasets.Value("string"), "edited_image": datasets.Image()}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(str(tmp_path / "edits.parquet"))
        source = {"format": "instruct-pix2pix", "path": str(tmp_path / "edits.parquet"), "streaming": streaming}
        if name == "before":
            with pytest.raises(ValueError, match=r"has no column 'original_image' .it has before"):
                load_data_source(source)
            source["options"] = {"columns": {"original_image": "before"}}
        first, second = load_data_source(source)
        assert second["messages"] == [user(image_part(), "Edit the image: two"), DRAWN]
        assert [colours(first), colours(second)] == [[colour(0), colour(1)], [colour(2), colour(3)]]


SQUARE = np.zeros((6, 8), dtype=bool)
SQUARE[1:4, 2:6] = True
INSTANCES = {
    "images": [{"id": 1, "file_name": "0.png", "height": 6, "width": 8}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 3, "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]]},
        {"id": 11, "image_id": 1, "category_id": 3, "segmentation": run_lengths(~SQUARE)},
        {"id": 12, "image_id": 1, "category_id": 3, "segmentation": run_lengths(np.ones((3, 3), dtype=bool))},
        {"id": 13, "image_id": 1, "category_id": 3, "segmentation": run_lengths(np.zeros((6, 8), dtype=bool))},
    ],
    "categories": [{"id": 3, "name": "person"}],
}


def reference(ref_id, ann_id, split, *sentences):
    said = [
        {"sent": text, "raw": text, "tokens": text.split(), "sent_id": 100 * ref_id + number}
        for number, text in enumerate(sentences)
    ]
    return {"ref_id": ref_id, "ann_id": ann_id, "split": split, "file_name": "x_10.jpg", "sentences": said}


REFS = [reference(0, 10, "train", "left man", "the man"), reference(1, 11, "testA", "everything else")]


class _Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


class TestRefCOCO:
    @pytest.fixture
    def write(self, tmp_path):
        write_images(tmp_path / "images")
        (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))

        def write(refs, kind="p", by="unc"):
            file = tmp_path / f"refs({by}).{kind}"
            file.write_bytes(pickle.dumps(refs, protocol=2) if kind == "p" else json.dumps(refs).encode())
            return {"format": "refcoco", "path": str(tmp_path)}

        return write

    @pytest.mark.parametrize("kind", ["p", "json"])
    def test_each_sentence_asks_for_the_mask_of_its_object(self, write, kind):
        examples = assert_canonical(load_data_source(write(REFS, kind)))
        assert [example["expression"] for example in examples] == ["left man", "the man", "everything else"]
        assert examples[0]["messages"] == [user(image_part(), "Segment: left man"), DRAWN]
        assert [example["ref_id"] for example in examples] == ["0", "0", "1"]
        assert {example["category"] for example in examples} == {"person"}
        for example, mask in zip(examples, (SQUARE, SQUARE, ~SQUARE)):
            assert colours(example)[0] == colour(0)
            assert np.array_equal(read_mask(example["images"][1]), mask)

    def test_splits_are_those_of_the_references(self, write):
        (example,) = load_data_source({**write(REFS), "split": "testA"})
        assert example["expression"] == "everything else"
        with pytest.raises(ValueError, match=r"unknown split.*'val'.*testA"):
            load_data_source({**write(REFS), "split": "val"})

    def test_of_several_files_one_is_named(self, write):
        write(REFS[:1], by="google")
        source = write(REFS, by="umd")
        with pytest.raises(ValueError, match="split by google and by umd"):
            load_data_source(source)
        assert len(load_data_source({**source, "options": {"split_by": "umd"}})) == 3

    def test_a_pickle_that_runs_code_is_refused_and_runs_none(self, write, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"system.*may run code"):
            load_data_source(write([*REFS, _Harmful()]))
        assert not (tmp_path / "harmed").exists()

    def test_texts_of_python_2_are_read(self, tmp_path):
        """As the released files have them: `str` of bytes, one of them not ASCII."""
        content = b"\x80\x02]}(U\x06ref_idK\x01U\x06ann_idK\nU\tsentences]}U\x04sentU\x04caf\xe9saua."
        (tmp_path / "refs(unc).p").write_bytes(content)
        (ref,) = read_references(tmp_path / "refs(unc).p")
        assert ref == {"ref_id": 1, "ann_id": 10, "sentences": [{"sent": "caf\xe9"}]}

    @pytest.mark.parametrize(
        ("ref", "message"),
        [
            (reference(7, 99, "train", "a"), "reference 7: ann_id 99 is not among"),
            (reference(7, 12, "train", "a"), "annotation 12: A mask is of size"),
            (reference(7, 13, "train", "a"), "mask of annotation 13 is empty"),
            (reference(7, 10, "train", " "), "a sentence is empty"),
        ],
    )
    def test_what_is_damaged_is_named_or_skipped(self, write, ref, message):
        source = write([*REFS, ref])
        with pytest.raises(BadSampleError, match=f"row 3.*{message}"):
            load_data_source(source)
        assert len(load_data_source({**source, "on_error": "skip"})) == 3

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x02]q\x00(", pickle.dumps({"a": 1}, protocol=2)])
    def test_damaged_files_are_refused(self, write, tmp_path, content):
        source = write(REFS)
        (tmp_path / "refs(unc).p").write_bytes(content)
        with pytest.raises(ValueError, match=r"refs.unc..p (is no pickle|must hold a list)"):
            load_data_source(source)

    def test_missing_files_are_named(self, write, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no expressions"):
            load_data_source({"format": "refcoco", "path": str(tmp_path)})
        source = write(REFS)
        with pytest.raises(FileNotFoundError, match="set `images`"):
            load_data_source({**source, "images": str(tmp_path / "none")})
        os.remove(tmp_path / "instances.json")
        with pytest.raises(FileNotFoundError, match=r"instances.json"):
            load_data_source(source)

    def test_it_mixes_with_answers_in_words(self, write, tmp_path):
        (tmp_path / "images" / "captions.json").write_text(json.dumps([{"image": "1.png", "caption": "One."}]))
        words = {"format": "json", "path": str(tmp_path / "images" / "captions.json")}
        mixed = mix_data_sources([write(REFS), words])
        assert sorted(str(example["task"]) for example in mixed) == ["None", "segment", "segment", "segment"]
