"""Every format yields the canonical example, with the content that was planted in tiny files."""

import json

import datasets
import pytest

from tests.trainer.planted_data import (
    assert_canonical,
    assistant,
    colour,
    colours,
    image_part,
    text_part,
    user,
    write_images,
    write_jsonl,
)
from vistok.processing.images import BadSampleError, load_example_images
from vistok.trainer.data_examples import FEATURES, apply_prompt, content_parts
from vistok.trainer.data_formats import DataSource, easy_vqa_answer_type
from vistok.trainer.data_sources import load_data_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


LLAVA_RECORDS = [
    {
        "id": "000-a",
        "image": "0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "A square."},
            {"from": "human", "value": "Which colour?"},
            {"from": "gpt", "value": "Green."},
        ],
    },
    {"id": 7, "conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "Hi."}]},
    {
        "id": "two",
        "image": ["1.png", "2.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Compare <image> with <image>\nnow."},
            {"from": "gpt", "value": "Alike."},
        ],
    },
    {
        "id": "after",
        "image": "3.png",
        "conversations": [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "It."}],
    },
]
LLAVA_MESSAGES = [
    [user(image_part(), "What is this?"), assistant("A square."), user("Which colour?"), assistant("Green.")],
    [user("Say hi."), assistant("Hi.")],
    [
        {"role": "system", "content": [text_part("Be brief.")]},
        user("Compare ", image_part(), " with ", image_part(), "now."),
        assistant("Alike."),
    ],
    [user("What is it?", image_part()), assistant("It.")],
]


@pytest.fixture
def llava_file(tmp_path):
    def write(suffix, records=LLAVA_RECORDS):
        write_images(tmp_path / "photos")
        path = tmp_path / f"conversations{suffix}"
        if suffix == ".jsonl":
            return write_jsonl(path, records)
        path.write_text(json.dumps(records))
        return path

    return write


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava_keeps_turns_placeholders_and_mixed_ids(llava_file, suffix, streaming, tmp_path):
    source = {
        "format": "llava",
        "name": "talks",
        "path": str(llava_file(suffix)),
        "images": str(tmp_path / "photos"),
        "streaming": streaming,
    }
    examples = assert_canonical(load_data_source(source))
    assert [example["id"] for example in examples] == ["000-a", "7", "two", "after"]
    assert [example["row"] for example in examples] == [0, 1, 2, 3]
    assert {example["source"] for example in examples} == {"talks"}
    assert [example["messages"] for example in examples] == LLAVA_MESSAGES
    assert [colours(example) for example in examples] == [[colour(0)], [], [colour(1), colour(2)], [colour(3)]]


def test_a_prompt_wraps_each_question_and_leaves_placeholders_outside(llava_file, tmp_path):
    source = DataSource(
        "llava",
        path=str(llava_file(".json")),
        images=str(tmp_path / "photos"),
        prompt="Question: {question} Answer:",
    )
    first, _, _, last = load_data_source(source)
    assert first["messages"][0] == user(image_part(), "Question: What is this? Answer:")
    assert first["messages"][2] == user("Question: Which colour? Answer:")
    assert first["messages"][1] == assistant("A square.")
    assert last["messages"][0] == user("Question: What is it? Answer:", image_part())


def test_a_question_with_braces_is_not_a_template():
    assert apply_prompt("Q: {question}", "<image>what is {x}?") == "<image>Q: what is {x}?"


def test_text_around_placeholders_keeps_its_inner_spaces():
    assert content_parts("  <image>\n<image>\nboth  cats \n") == [image_part(), image_part(), text_part("both  cats")]
    assert content_parts("") == []


BAD_CONVERSATIONS = {
    "1 image placeholders for 0 images": {"conversations": LLAVA_RECORDS[0]["conversations"]},
    "0 image placeholders for 1 images": {"image": "0.png", "conversations": LLAVA_RECORDS[1]["conversations"]},
    "1 image placeholders for 2 images": {
        "image": ["0.png", "1.png"],
        "conversations": LLAVA_RECORDS[0]["conversations"],
    },
    "answers hold text only": {
        "image": "0.png",
        "conversations": [{"from": "human", "value": "Draw."}, {"from": "gpt", "value": "<image>"}],
    },
    "missing or empty": {"conversations": [{"from": "human", "value": "Hello?"}]},
    "must start with the user": {"conversations": [{"from": "gpt", "value": "Hello."}]},
    "unknown speaker 'bot'": {"conversations": [{"from": "bot", "value": "Hello."}]},
    "needs 'from' and the text 'value'": {"conversations": [{"from": "human", "text": "Hello."}]},
    "it has 'id'": {"id": "bare"},
    "a turn of the conversation is empty": {
        "conversations": [{"from": "human", "value": " \n"}, {"from": "gpt", "value": "Yes."}]
    },
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("reason", BAD_CONVERSATIONS)
def test_bad_conversations_name_file_row_and_reason(llava_file, reason, streaming, tmp_path):
    path = llava_file(".jsonl", [LLAVA_RECORDS[1], LLAVA_RECORDS[1] | {"id": 8}, BAD_CONVERSATIONS[reason]])
    source = {"format": "llava", "path": str(path), "images": str(tmp_path / "photos"), "streaming": streaming}
    with pytest.raises(BadSampleError) as raised:
        list(load_data_source(source))
    error = raised.value
    assert (error.row, error.file, error.source) == (2, str(path), "llava:conversations.jsonl")
    assert reason in error.reason


def test_easy_vqa_yields_question_answer_and_answer_type(tmp_path):
    for split, questions in {
        "train": [["what is the shape?", "circle", 2], ["is it red?", "no", 1]],
        "test": [["what color is it?", "teal", 3]],
    }.items():
        folder = tmp_path / "easy_vqa" / "data" / split
        write_images(folder / "images")
        (folder / "questions.json").write_text(json.dumps(questions))
    train = load_data_source({"format": "easy-vqa", "path": str(tmp_path)})
    examples = assert_canonical(train)
    assert [example["messages"] for example in examples] == [
        [user(image_part(), "what is the shape?"), assistant("circle")],
        [user(image_part(), "is it red?"), assistant("no")],
    ]
    assert [colours(example) for example in examples] == [[colour(2)], [colour(1)]]
    assert train["answer_type"] == ["shape", "yes/no"]
    test = load_data_source({"format": "easy-vqa", "path": str(tmp_path), "split": "test", "prompt": "Q {question} A"})
    assert test[0]["messages"][0] == user(image_part(), "Q what color is it? A")
    assert test["answer_type"] == ["color"]


@pytest.mark.real_data("easy-vqa")
def test_the_fetched_easy_vqa_has_its_published_size_and_majority():
    test = load_data_source({"format": "easy-vqa", "split": "test"})
    assert len(test) == 9673
    answers = [example[1]["content"][0]["text"] for example in test["messages"]]
    assert round(100 * answers.count("yes") / len(answers), 1) == 37.3
    assert len(set(answers)) == 13
    assert load_example_images(test[9672])[0].size == (64, 64)


def test_easy_vqa_answer_types_cover_the_13_answers_and_nothing_else():
    kinds = {"yes/no": ["yes", "no"], "shape": ["circle", "rectangle", "triangle"]}
    kinds["color"] = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
    for kind, answers in kinds.items():
        assert [easy_vqa_answer_type(answer) for answer in answers] == [kind] * len(answers)
    with pytest.raises(ValueError, match="unknown easy-VQA answer 'pink'"):
        easy_vqa_answer_type("pink")


def write_coco(tmp_path):
    write_images(tmp_path / "val2017")
    (tmp_path / "annotations").mkdir()
    captions = {
        "images": [{"id": 11, "file_name": "1.png"}, {"id": 12, "file_name": "2.png"}],
        "annotations": [
            {"id": 500, "image_id": 12, "caption": "A red dot. "},
            {"id": 501, "image_id": 11, "caption": "A cat."},
            {"id": 502, "image_id": 12, "caption": "One dot."},
        ],
    }
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(captions))
    return path, captions


def test_coco_captions_yield_one_example_per_caption(tmp_path):
    path, captions = write_coco(tmp_path)
    examples = assert_canonical(load_data_source({"format": "coco-captions", "path": str(path)}))
    question = user(image_part(), "what does the image describe?")
    answers = ["A red dot.", "A cat.", "One dot."]
    assert [example["messages"] for example in examples] == [[question, assistant(answer)] for answer in answers]
    assert [colours(example) for example in examples] == [[colour(2)], [colour(1)], [colour(2)]]
    assert [example["id"] for example in examples] == ["500", "501", "502"]
    by_split = {"format": "coco-captions", "path": str(tmp_path), "split": "val2017", "prompt": "Describe it."}
    assert load_data_source(by_split)[0]["messages"][0] == user(image_part(), "Describe it.")

    captions["annotations"][1]["image_id"] = 99
    path.write_text(json.dumps(captions))
    with pytest.raises(BadSampleError, match=r"row 1, .*image_id 99 is not among the images"):
        load_data_source({"format": "coco-captions", "path": str(path)})


@pytest.mark.parametrize("metadata", ["jsonl", "csv"])
def test_image_folder_reads_questions_or_captions(tmp_path, metadata):
    questions, captions = tmp_path / "questions" / "train", tmp_path / "captions"
    write_images(questions)
    write_images(captions)
    if metadata == "jsonl":
        write_jsonl(questions / "metadata.jsonl", [{"file_name": "3.png", "question": "How many?", "answer": 2}])
        write_jsonl(captions / "metadata.jsonl", [{"file_name": "1.png", "text": 'A "big" cat, red'}])
    else:
        (questions / "metadata.csv").write_text("file_name,question,answer\n3.png,How many?,2\n")
        (captions / "metadata.csv").write_text('file_name,text\n1.png,"A ""big"" cat, red"\n')
    (example,) = assert_canonical(
        load_data_source({"format": "image-folder", "path": str(questions.parent), "split": "train"})
    )
    assert example["messages"] == [user(image_part(), "How many?"), assistant("2")]
    assert colours(example) == [colour(3)]
    (example,) = assert_canonical(load_data_source({"format": "image-folder", "path": str(captions)}))
    assert example["messages"] == [
        user(image_part(), "what does the image describe?"),
        assistant('A "big" cat, red'),
    ]
    assert colours(example) == [colour(1)]


def test_a_csv_line_without_an_image_or_with_too_few_cells_is_bad(tmp_path):
    write_images(tmp_path)
    lines = ["file_name,question,answer", "0.png,a,b", ",a,b", "0.png,a"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    dataset = load_data_source({"format": "image-folder", "path": str(tmp_path), "on_error": "skip"})
    assert len(dataset) == 1
    assert [(error.row, error.reason) for error in dataset.skipped_samples.errors()] == [
        (1, "the record names no image"),
        (2, "the line has not as many cells as the header"),
    ]


def test_columns_may_have_other_names(tmp_path):
    write_images(tmp_path)
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "3.png", "query": "Where?", "label": "Here."}])
    options = {"columns": {"question": "query", "answer": "label"}}
    (example,) = load_data_source({"format": "image-folder", "path": str(tmp_path), "options": options})
    assert example["messages"] == [user(image_part(), "Where?"), assistant("Here.")]


def test_a_column_may_be_missing_in_the_first_record(llava_file, tmp_path):
    with_image = {("picture" if name == "image" else name): value for name, value in LLAVA_RECORDS[0].items()}
    path = llava_file(".json", [LLAVA_RECORDS[1], with_image])
    options = {"columns": {"images": "picture"}}
    source = {"format": "llava", "path": str(path), "images": str(tmp_path / "photos"), "options": options}
    assert [colours(example) for example in load_data_source(source)] == [[], [colour(0)]]


CANONICAL_RECORDS = [
    {"images": ["1.png"], "messages": [user(image_part(), "What?"), assistant("This.")]},
    {
        "images": ["2.png", "3.png"],
        "messages": [{"role": "user", "content": "Both?"}, {"role": "assistant", "content": "Yes."}],
    },
]


@pytest.mark.parametrize("streaming", [False, True])
def test_json_of_messages_takes_parts_and_plain_texts(tmp_path, streaming):
    write_images(tmp_path)
    path = write_jsonl(tmp_path / "messages.jsonl", CANONICAL_RECORDS)
    examples = assert_canonical(load_data_source({"format": "json", "path": str(path), "streaming": streaming}))
    assert [example["messages"] for example in examples] == [
        [user(image_part(), "What?"), assistant("This.")],
        [user(image_part(), image_part(), "Both?"), assistant("Yes.")],
    ]
    assert [colours(example) for example in examples] == [[colour(1)], [colour(2), colour(3)]]


def test_a_placeholder_typed_in_a_text_part_is_an_image_and_in_an_answer_a_mistake(tmp_path):
    write_images(tmp_path)
    typed = {"images": ["1.png"], "messages": [user("<image>\nWhat?"), assistant("This.")]}
    captioned = {"image": "2.png", "caption": "An <image> of a cat."}
    path = write_jsonl(tmp_path / "messages.jsonl", [typed, captioned])
    source = {"format": "json", "path": str(path), "on_error": "skip"}
    dataset = load_data_source(source)
    assert [example["messages"] for example in dataset] == [[user(image_part(), "What?"), assistant("This.")]]
    with pytest.raises(BadSampleError, match="a text holds <image>, which stands for an image") as raised:
        load_data_source(source | {"on_error": "raise"})
    assert (raised.value.row, raised.value.file) == (1, str(path))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_repeated_ids_are_told_apart_by_their_rows(llava_file, suffix, tmp_path):
    records = [LLAVA_RECORDS[1] | {"id": name} for name in ["b-2", "b", "b", "a", "a"]]
    source = {"format": "llava", "path": str(llava_file(suffix, records)), "images": str(tmp_path / "photos")}
    dataset = load_data_source(source)
    assert dataset["id"] == ["b-2", "b", "b-2-2", "a", "a-4"]
    assert dataset.column_names == list(FEATURES)
    assert load_data_source(source | {"max_samples": 4})["id"] == dataset["id"][:4]
    assert_canonical(dataset)


def test_canonical_examples_survive_a_round_trip_through_parquet(llava_file, tmp_path):
    source = {"format": "llava", "path": str(llava_file(".json")), "images": str(tmp_path / "photos")}
    first = load_data_source(source)
    first.to_parquet(tmp_path / "saved.parquet")
    second = load_data_source({"format": "parquet", "path": str(tmp_path / "saved.parquet")})
    assert second["messages"] == first["messages"]
    assert second["id"] == first["id"]
    assert [colours(example) for example in second] == [colours(example) for example in first]


def test_a_line_that_is_no_json_is_a_bad_sample_of_its_row(llava_file, tmp_path):
    path = llava_file(".jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", lines[1], '{"id": "cut', lines[3]]))
    for streaming in (False, True):
        source = {"format": "llava", "path": str(path), "images": str(tmp_path / "photos"), "streaming": streaming}
        with pytest.raises(BadSampleError, match=r"row 3, .*not valid JSON"):
            list(load_data_source(source))
        dataset = load_data_source(source | {"on_error": "skip"})
        assert [example["row"] for example in dataset] == [0, 2, 4]


def test_a_changed_annotation_file_is_not_served_from_the_cache(llava_file, tmp_path):
    path = llava_file(".json")
    source = {"format": "llava", "path": str(path), "images": str(tmp_path / "photos")}
    assert len(load_data_source(source)) == 4
    records = [LLAVA_RECORDS[1] | {"id": "new"}]
    path.write_text(json.dumps(records))
    assert load_data_source(source)["id"] == ["new"]
    assert load_data_source(source | {"prompt": "{question}!"})[0]["messages"][0] == user("Say hi.!")


def test_a_repaired_image_is_not_skipped_from_the_cache(llava_file, tmp_path):
    path = llava_file(".json")
    source = {"format": "llava", "path": str(path), "images": str(tmp_path / "photos"), "on_error": "skip"}
    good = (tmp_path / "photos" / "0.png").read_bytes()
    (tmp_path / "photos" / "0.png").write_bytes(good[:40])
    assert len(load_data_source(source)) == 3
    (tmp_path / "photos" / "0.png").write_bytes(good)
    assert len(load_data_source(source)) == 4


def test_pixels_are_read_late(llava_file, tmp_path):
    """Loading a source opens no image: only reading one does."""
    path = llava_file(".json")
    for image in (tmp_path / "photos").iterdir():
        image.unlink()
    dataset = load_data_source({"format": "llava", "path": str(path), "images": str(tmp_path / "photos")})
    with pytest.raises(BadSampleError, match=r"row 3, file .*3\.png: the image file does not exist"):
        load_example_images(dataset[3])
    assert load_example_images(dataset[1]) == []


def test_a_wrong_column_names_the_columns_of_the_data(llava_file, tmp_path):
    source = {"format": "llava", "path": str(llava_file(".json")), "images": str(tmp_path / "photos")}
    with pytest.raises(ValueError, match=r"unknown column .* 'picture'; known: 'id', 'image', 'conversations'"):
        load_data_source(source | {"options": {"columns": {"images": "picture"}}})
    with pytest.raises(ValueError, match=r"unknown part of a record in `columns` 'imags'; .*Did you mean 'images'"):
        load_data_source(source | {"options": {"columns": {"imags": "image"}}})


def test_missing_files_and_folders_are_named(llava_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.json"):
        load_data_source({"format": "llava", "path": str(tmp_path / "gone.json")})
    with pytest.raises(FileNotFoundError, match=r"there is no image folder .*fotos"):
        load_data_source({"format": "llava", "path": str(llava_file(".json")), "images": str(tmp_path / "fotos")})
    with pytest.raises(FileNotFoundError, match=r"no file matches .*gone.*\.tar"):
        load_data_source({"format": "webdataset", "path": str(tmp_path / "gone-*.tar")})
    with pytest.raises(FileNotFoundError, match=r"holds no metadata\.jsonl or metadata\.csv"):
        load_data_source({"format": "image-folder", "path": str(tmp_path)})
