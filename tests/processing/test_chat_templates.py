"""Chat templates write the prompts of the papers, and mark the answers and nothing else."""

import pytest

from tests.tiny import assistant, tiny_image, tiny_processor, tiny_tokenizer, user
from vistok.processing.chat_templates import CHAT_TEMPLATES, get_chat_template
from vistok.processing.collator import tokenize_conversation

CONVERSATION = [
    user("<image>", "is there a dog?"),
    assistant("yes, there is"),
    user("<image>", "and here?", "<image>"),
    assistant("line one\nline  two"),
    user("how many?"),
    assistant("three"),
]
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)

WRITTEN = {
    "question-answer": (
        "<image>\nQuestion: is there a dog? Answer: yes, there is</s>"
        "\n<image>\n<image>\nQuestion: and here? Answer: line one\nline  two</s>"
        "\nQuestion: how many? Answer: three</s>"
    ),
    "chatml": (
        "<|im_start|>user\n<image>\nis there a dog?<|im_end|>\n<|im_start|>assistant\nyes, there is<|im_end|>\n"
        "<|im_start|>user\n<image>\nand here?<image>\n<|im_end|>\n"
        "<|im_start|>assistant\nline one\nline  two<|im_end|>\n"
        "<|im_start|>user\nhow many?<|im_end|>\n<|im_start|>assistant\nthree<|im_end|>\n"
    ),
    "vicuna": (
        "USER: <image>\nis there a dog? ASSISTANT: yes, there is</s>"
        "USER: <image>\nand here?<image>\n ASSISTANT: line one\nline  two</s>"
        "USER: how many? ASSISTANT: three</s>"
    ),
    "vicuna-v1": (
        f"{VICUNA} USER: <image>\nis there a dog? ASSISTANT: yes, there is</s>"
        "USER: <image>\n<image>\nand here? ASSISTANT: line one\nline  two</s>"
        "USER: how many? ASSISTANT: three</s>"
    ),
    "mistral": (
        "[INST] <image>\nis there a dog? [/INST] yes, there is </s>"
        "[INST] <image>\n<image>\nand here? [/INST] line one\nline  two </s>"
        "[INST] how many? [/INST] three </s>"
    ),
}
ANSWERS = {
    "question-answer": [" yes, there is</s>", " line one\nline  two</s>", " three</s>"],
    "chatml": ["yes, there is<|im_end|>", "line one\nline  two<|im_end|>", "three<|im_end|>"],
    "vicuna": [" yes, there is</s>", " line one\nline  two</s>", " three</s>"],
    "vicuna-v1": [" yes, there is</s>", " line one\nline  two</s>", " three</s>"],
    "mistral": [" yes, there is </s>", " line one\nline  two </s>", " three </s>"],
}
WITH_SYSTEM = {
    "question-answer": "Be brief.\n\nQuestion: how many? Answer:",
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhow many?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "vicuna": "Be brief. USER: how many? ASSISTANT:",
    "vicuna-v1": "Be brief. USER: how many? ASSISTANT:",
    "mistral": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhow many? [/INST]",
}
# "plain" writes captions only: tests/processing/test_processing_vtlmm.py.
every_template = pytest.mark.parametrize("name", [name for name in CHAT_TEMPLATES if name != "plain"])
every_tokenizer = pytest.mark.parametrize("options", [{}, {"add_bos": True}, {"trim_offsets": True}])


def supervised_texts(processor, messages):
    """The runs of supervised tokens, as text."""
    conversation = tokenize_conversation(processor, messages)
    runs, previous = [], False
    for token, supervised in zip(conversation.input_ids, conversation.supervised, strict=True):
        if supervised:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = supervised
    return [processor.tokenizer.decode(run) for run in runs]


@every_template
def test_what_a_conversation_looks_like(name):
    processor = tiny_processor(chat_template=name)
    assert processor.apply_chat_template(CONVERSATION, tokenize=False) == WRITTEN[name]


@every_template
@every_tokenizer
def test_answers_and_nothing_else_are_supervised(name, options):
    processor = tiny_processor(tiny_tokenizer(**options), chat_template=name)
    assert supervised_texts(processor, CONVERSATION) == ANSWERS[name]


@every_template
@every_tokenizer
def test_every_token_of_a_conversation_is_there_once(name, options):
    processor = tiny_processor(tiny_tokenizer(**options), chat_template=name)
    expanded = WRITTEN[name].replace("<image>", f"<Img> {'<image>' * 3}</Img>")
    conversation = tokenize_conversation(processor, CONVERSATION)
    assert conversation.input_ids == processor.tokenizer(expanded)["input_ids"]
    assert len(conversation.supervised) == len(conversation.input_ids)


@every_template
@every_tokenizer
def test_a_model_is_asked_with_the_very_tokens_that_it_was_trained_on(name, options):
    processor = tiny_processor(tiny_tokenizer(**options), chat_template=name)
    trained = tokenize_conversation(processor, CONVERSATION)
    first_answer = trained.supervised.index(True)
    image = {"type": "image", "image": tiny_image()}
    question = [{"role": "user", "content": [image, {"type": "text", "text": "is there a dog?"}]}]
    asked = processor.apply_chat_template(question, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert asked["input_ids"][0] == trained.input_ids[:first_answer]


def test_a_template_that_begins_texts_itself_does_not_begin_them_twice():
    template = "{{ bos_token }}" + CHAT_TEMPLATES["vicuna"]
    processor = tiny_processor(tiny_tokenizer(add_bos=True), chat_template=template)
    conversation = tokenize_conversation(processor, [user("how many?"), assistant("three")])
    assert conversation.input_ids.count(processor.tokenizer.bos_token_id) == 1
    asked = processor.apply_chat_template([user("how many?")], tokenize=True, return_dict=True)["input_ids"][0]
    assert conversation.input_ids[: len(asked)] == asked


@every_template
def test_system_turns_come_first_and_are_not_supervised(name):
    processor = tiny_processor(chat_template=name)
    messages = [SYSTEM, user("how many?")]
    assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == WITH_SYSTEM[name]
    assert supervised_texts(processor, [*messages, assistant("three")]) == ANSWERS[name][2:]


@every_template
def test_contents_may_be_plain_strings(name):
    processor = tiny_processor(chat_template=name)
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "three"},
    ]
    parts = [SYSTEM, user("how many?"), assistant("three")]
    written = processor.apply_chat_template(parts, tokenize=False)
    assert processor.apply_chat_template(plain, tokenize=False) == written
    assert supervised_texts(processor, plain) == supervised_texts(processor, parts) == ANSWERS[name][2:]


# A block that ends in white space: the next turn's first token begins with it, and is no part of the answer.
ENDING_IN_SPACE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + ending }}{% endgeneration %}
{%- else -%}
{{ 'USER: ' + message['content'] + ' ASSISTANT: ' }}
{%- endif -%}
{%- endfor -%}"""


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(
    "ending, expected",
    [
        ("' '", [["Ġthree", "Ġcats"], ["Ġno", "Ġ"]]),
        ("'  '", [["Ġthree", "Ġcats", "Ġ"], ["Ġno", "Ġ", "Ġ"]]),
        ("'\\n'", [["Ġthree", "Ġcats", "Ċ"], ["Ġno", "Ċ"]]),
        ("'</s>\\n'", [["Ġthree", "Ġcats", "</s>", "Ċ"], ["Ġno", "</s>", "Ċ"]]),
        ("''", [["Ġthree", "Ġcats"], ["Ġno"]]),
    ],
)
def test_blocks_that_end_in_white_space_supervise_no_token_of_the_next_turn(ending, expected, trim_offsets):
    template = ENDING_IN_SPACE.replace("ending", ending)
    processor = tiny_processor(tiny_tokenizer(trim_offsets=trim_offsets), chat_template=template)
    messages = [("user", "how many?"), ("assistant", "three cats"), ("user", "and?"), ("assistant", "no")]
    conversation = tokenize_conversation(processor, [{"role": role, "content": text} for role, text in messages])
    tokens = processor.tokenizer.convert_ids_to_tokens(conversation.input_ids)
    assert "ĠUSER" in tokens or not ending.endswith(" '"), "the trap is not set"
    found, previous = [], False
    for token, supervised in zip(tokens, conversation.supervised):
        if supervised:
            found = found if previous else [*found, []]
            found[-1].append(token)
        previous = supervised
    assert found == expected


def test_spaces_within_an_answer_are_supervised_whatever_the_tokenizer_says_of_their_place():
    processor = tiny_processor(tiny_tokenizer(trim_offsets=True))
    assert supervised_texts(processor, [user("how many?"), assistant("one   or  two ")]) == [" one   or  two </s>"]


def test_empty_answers_teach_to_end():
    processor = tiny_processor()
    assert [text.strip() for text in supervised_texts(processor, [user("how many?"), assistant("")])] == ["</s>"]


def test_a_template_of_ones_own_is_taken_as_it_is():
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert get_chat_template(template) == template
    assert tiny_processor(chat_template=template).chat_template == template


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ValueError, match="'alpaca' is no chat template; choose question-answer, chatml, vicuna"):
        get_chat_template("alpaca")


def test_a_template_that_marks_no_answers_is_refused():
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    processor = tiny_processor(chat_template=template)
    with pytest.raises(ValueError, match=r"marks no answers: write \{% generation %\}"):
        tokenize_conversation(processor, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


@every_template
def test_the_placeholder_of_the_tokenizer_is_the_one_that_is_written(name):
    tokenizer = tiny_tokenizer()
    tokenizer._set_model_specific_special_tokens({"image_token": "<picture>"})
    tokenizer.add_special_tokens({"image_token": "<picture>"})
    processor = tiny_processor(tokenizer, chat_template=name)
    written = processor.apply_chat_template([user("<image>", "how many?")], tokenize=False)
    assert written.count("<picture>") == 1
    assert "<image>" not in written
