"""Generated answers are those of one prompt at a time, however much was shared to get them."""

import copy

import pytest
from transformers import MistralConfig

from tests.tiny import (
    assistant,
    calls,
    image_bytes,
    tiny_gvt,
    tiny_llama_config,
    tiny_processor,
    tiny_t5_config,
    tiny_tokenizer,
    user,
)
from vistok.evaluation import batches
from vistok.evaluation.generation import generate_answers
from vistok.evaluation.image_encoder import ImageEncoder
from vistok.evaluation.likelihoods import score_answers
from vistok.evaluation.prompts import make_prompts
from vistok.processing.chat_templates import get_chat_template
from vistok.processing.feature_cache import FeatureCache
from vistok.processing.images import BadSampleError, load_example_images

QUIET = {"progress_bar": False}
SHORT = {"progress_bar": False, "max_new_tokens": 10}


def as_asked(processor, example):
    """What the processor makes of an example's images and question, template and tokens in one, as pipelines do."""
    images = iter(load_example_images(example))
    messages = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(images)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in example["messages"][:-1]
    ]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def one_at_a_time(model, processor, examples, max_new_tokens=10):
    """As a user would ask: through the processor and `generate`, without batches, caches or this module."""
    answers = []
    for example in examples:
        inputs = as_asked(processor, example)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        answers.append(processor.tokenizer.decode(output[0, start:], skip_special_tokens=True).strip())
    return answers


@pytest.fixture
def mixed(make_question, questions):
    """Questions about one image, two, or none, before or behind the text, first ones and later ones."""
    first, second = image_bytes(0), image_bytes(1)
    later = copy.deepcopy(questions[:2])
    for example in later:
        example["messages"] += [user("are you sure?"), assistant("yes")]
    behind = make_question(32, "x", "y")
    behind |= {"images": [second], "messages": [user("what is it?", "<image>"), assistant("y")]}
    return [
        make_question(30, "which is which?", "y", first, second),
        *questions[4:8],
        make_question(31, "who?", "y"),
        *later,
        behind,
        make_question(33, "are both alike?", "y", first, second),
        make_question(34, "who are they?", "y"),
        make_question(35, "a?", "y", second, first),
    ]


# Sameness


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_answers_are_those_of_one_prompt_at_a_time(model, processor, questions, batch_size):
    expected = one_at_a_time(model, processor, questions)
    assert len(set(expected)) > 6, "a model that always says the same would prove nothing"
    assert generate_answers(model, processor, questions, batch_size, **SHORT) == expected


@pytest.mark.parametrize("template", ["question-answer", "chatml"])
def test_prompts_of_any_kind_can_be_mixed(model, mixed, template):
    processor = tiny_processor(chat_template=template)
    expected = one_at_a_time(model, processor, mixed)
    for batch_size in (2, 50):
        assert generate_answers(model, processor, mixed, batch_size, **SHORT) == expected


@pytest.mark.parametrize("begins", ["", "{{ bos_token }}"])
def test_prompts_begin_once_whether_the_template_or_the_tokenizer_begins_them(mixed, begins):
    template = begins + get_chat_template("vicuna")
    processor = tiny_processor(tiny_tokenizer(add_bos=True), chat_template=template)
    prompts = {index: prompt for prompt in make_prompts(processor, mixed) for index in prompt.examples}
    for index, example in enumerate(mixed):
        assert prompts[index].input_ids == as_asked(processor, example)["input_ids"][0].tolist()
        assert prompts[index].input_ids.count(processor.tokenizer.bos_token_id) == 1


def test_a_sliding_window_is_not_shared(processor, questions):
    model = tiny_gvt(None, tiny_llama_config(MistralConfig, sliding_window=12))
    assert generate_answers(model, processor, questions, 5, **SHORT) == one_at_a_time(model, processor, questions)


def test_encoder_decoder_models_answer(questions):
    processor = tiny_processor(chat_template="vicuna")
    model = tiny_gvt(None, tiny_t5_config())
    expected = one_at_a_time(model, processor, questions)
    assert len(set(expected)) > 2
    assert generate_answers(model, processor, questions, 5, **SHORT) == expected


def test_images_of_fewer_tokens_leave_no_trace_of_their_unused_placeholders(model, processor, questions, monkeypatch):
    core = model.model
    full = core.resampler.forward

    def shorter(patch_features, *args, **kwargs):
        output = full(patch_features, *args, **kwargs)
        output.mask[:, 1:] = patch_features.mean((1, 2))[:, None] > patch_features.mean()
        return output

    monkeypatch.setattr(core.resampler, "forward", shorter)
    unmasked = generate_answers(model, processor, questions, 6, **SHORT)
    monkeypatch.setattr(type(core.resampler), "variable_num_tokens", True)
    images = {id(example["images"][0]): example for example in questions[:6]}
    encoder = ImageEncoder(model, processor)
    encoder.know(questions)
    assert len(images) == 6
    shared = generate_answers(model, processor, questions, 6, encoder=encoder, **SHORT)
    assert shared != unmasked
    monkeypatch.setattr(batches, "can_share_prefix", lambda model: False)
    assert shared == generate_answers(model, processor, questions, 6, encoder=encoder, **SHORT)


def test_whatever_a_checkpoint_samples_with_answers_are_greedy(model, processor, questions):
    expected = one_at_a_time(model, processor, questions[:6])
    config = model.generation_config
    config.do_sample, config.temperature, config.top_k, config.num_beams = True, 5.0, 50, 3
    config.repetition_penalty = 3.0
    for _ in range(2):
        assert generate_answers(model, processor, questions[:6], **SHORT) == expected


def test_cached_features_give_the_same_answers_without_the_tower(model, processor, questions, tmp_path, monkeypatch):
    expected = generate_answers(model, processor, questions, **SHORT)
    features = FeatureCache.build(model, processor, questions, tmp_path, progress_bar=False)
    towers = calls(monkeypatch, type(model.model.vision_tower), "forward")
    assert generate_answers(model, processor, questions, features=features, **SHORT) == expected
    assert towers == []


def test_images_that_a_feature_cache_lacks_go_through_the_tower(model, processor, questions, tmp_path):
    features = FeatureCache.build(model, processor, questions[:3], tmp_path, progress_bar=False)
    expected = generate_answers(model, processor, questions, **SHORT)
    assert generate_answers(model, processor, questions, features=features, **SHORT) == expected


def test_forgotten_images_are_encoded_again(model, processor, questions, monkeypatch):
    expected = generate_answers(model, processor, questions, **SHORT)
    encoder = ImageEncoder(model, processor, batch_size=2, max_bytes=1500)  # an image has 3 x 48 x 4 + 3 bytes
    monkeypatch.setattr(batches, "can_share_prefix", lambda model: False)
    assert generate_answers(model, processor, questions, 4, encoder=encoder, **SHORT) == expected
    assert sum(len(tokens) for tokens in encoder._tokens.values()) <= 4


# Economy


def rows_of(recorded, name):
    return sum(len(kwargs[name] if name in kwargs else args[1]) for args, kwargs in recorded)


def test_the_tower_sees_each_image_once(model, processor, questions, monkeypatch):
    towers = calls(monkeypatch, type(model.model.vision_tower), "forward")
    encoder = ImageEncoder(model, processor)
    for images in ("given", "shuffled", "given"):
        generate_answers(model, processor, questions, 4, images=images, encoder=encoder, **SHORT)
    assert rows_of(towers, "pixel_values") == 6


def test_blank_images_are_one_image_and_repeated_prompts_one_prompt(model, processor, questions, monkeypatch):
    towers = calls(monkeypatch, type(model.model.vision_tower), "forward")
    generated = calls(monkeypatch, type(model), "generate")
    answers = generate_answers(model, processor, questions, images="blank", **SHORT)
    assert rows_of(towers, "pixel_values") == 1
    assert rows_of(generated, "input_ids") == 3, "three texts about one image"
    assert [answers[index] for index in (0, 6, 12)] == [answers[index] for index in (5, 11, 17)]


def test_the_prefix_of_an_image_is_computed_once_for_all_its_questions(model, processor, questions, monkeypatch):
    seen = calls(monkeypatch, type(model.model.language_model), "forward")
    generate_answers(model, processor, questions, max_new_tokens=1, progress_bar=False)
    tokens = sum(kwargs["inputs_embeds"].shape[:2].numel() for _, kwargs in seen)
    prompts = [len(prompt.input_ids) for prompt in make_prompts(processor, questions)]
    prefix = len(processor.tokenizer("<Img> ")["input_ids"]) + processor.num_image_tokens
    assert tokens <= 18 * max(prompts) - (18 - 6) * prefix
    assert seen[0][1]["inputs_embeds"].shape[0] == 6


# Conditions


def test_a_model_that_looks_is_right_about_given_images_only(taught, processor, questions):
    expected = [example["messages"][-1]["content"][0]["text"] for example in questions]
    assert generate_answers(taught, processor, questions, **QUIET) == expected
    for images in ("blank", "shuffled"):
        answers = generate_answers(taught, processor, questions, images=images, **QUIET)
        assert sum(answer == right for answer, right in zip(answers, expected)) < 12


def test_answers_about_shuffled_images_are_those_about_the_images_shown(taught, processor, questions):
    from vistok.evaluation.image_controls import control_images

    dealt = control_images(questions, "shuffled", seed=3)
    colour = {example["images"][0]["bytes"]: example["messages"][-1]["content"][0]["text"] for example in questions}
    answers = generate_answers(taught, processor, questions, images="shuffled", seed=3, **QUIET)
    assert answers == [colour[example["images"][0]["bytes"]] for example in dealt]


# Scores


def test_scores_agree_with_generation(taught, processor, questions):
    examples = copy.deepcopy(questions)
    for index in (1, 7, 12):  # right but for the end, the beginning, everything
        examples[index]["messages"][-1] = assistant({1: "blueish", 7: "light blue", 12: "sixteen"}[index])
    generated = generate_answers(taught, processor, examples, **QUIET)
    expected = [
        answer == example["messages"][-1]["content"][0]["text"] for answer, example in zip(generated, examples)
    ]
    assert [index for index, right in enumerate(expected) if not right] == [1, 7, 12]
    for batch_size in (1, 4, 50):
        assert score_answers(taught, processor, examples, batch_size, **QUIET) == expected


@pytest.mark.parametrize("images", ["given", "blank", "shuffled"])
def test_scores_agree_with_generation_about_other_images(taught, processor, questions, images):
    generated = generate_answers(taught, processor, questions, images=images, **QUIET)
    expected = [
        answer == example["messages"][-1]["content"][0]["text"] for answer, example in zip(generated, questions)
    ]
    assert score_answers(taught, processor, questions, images=images, **QUIET) == expected


def test_encoder_decoder_models_that_look_are_right_and_scored_so(teach, questions):
    processor = tiny_processor(chat_template="vicuna")
    model = teach(tiny_t5_config(), processor, questions)
    examples = copy.deepcopy(questions)
    examples[5]["messages"][-1], examples[9]["messages"][-1] = assistant("greenish"), assistant("in no way red")
    generated = generate_answers(model, processor, examples, **QUIET)
    assert generated == [example["messages"][-1]["content"][0]["text"] for example in questions]
    for batch_size in (1, 4, 50):
        scores = score_answers(model, processor, examples, batch_size, **QUIET)
        assert [index for index, right in enumerate(scores) if not right] == [5, 9]


# Arguments


def test_answers_known_before_are_kept_and_not_generated(model, processor, questions, monkeypatch):
    expected = generate_answers(model, processor, questions, 6, **SHORT)
    generated = calls(monkeypatch, type(model), "generate")
    known = {index: f"known {index}" for index in range(len(questions)) if index != 8}
    answers = generate_answers(model, processor, questions, 6, known=known, **SHORT)
    assert answers == [known.get(index, expected[index]) for index in range(len(questions))]
    assert len(generated) == 1, "one batch holds the question that is left"


def test_answers_are_reported_as_they_come(model, processor, questions):
    reported = []
    answers = generate_answers(
        model, processor, questions, 6, on_answers=lambda *news: reported.append(news), known={0: "known"}, **SHORT
    )
    assert len(reported) == 3
    told = {index: answer for indices, texts in reported for index, answer in zip(indices, texts)}
    assert told == {index: answer for index, answer in enumerate(answers) if index > 0}


def test_a_model_in_training_is_evaluated_without_dropout_and_goes_on_training(processor, questions):
    model = tiny_gvt(None, tiny_llama_config(attention_dropout=0.5))
    expected = generate_answers(model, processor, questions, **SHORT)
    model.train()
    assert generate_answers(model, processor, questions, **SHORT) == expected
    assert model.training


def test_no_examples_have_no_answers(model, processor):
    assert generate_answers(model, processor, [], **SHORT) == []


@pytest.mark.parametrize("name", ["batch_size", "max_new_tokens"])
def test_sizes_must_be_positive(model, processor, questions, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        generate_answers(model, processor, questions, **{name: 0})


def test_an_example_without_a_right_answer_is_refused_with_its_row(model, processor, make_question):
    example = make_question(3, "a?", "b")
    example["messages"].pop()
    with pytest.raises(BadSampleError, match="row 3: the last turn must be the assistant's"):
        generate_answers(model, processor, [example], **SHORT)


def test_missing_images_are_refused_with_their_row(model, processor, questions):
    example = {**questions[4], "images": []}
    with pytest.raises(BadSampleError, match="row 4: 1 image placeholders for 0 images"):
        generate_answers(model, processor, [example], **SHORT)


def test_features_are_refused_for_a_tokenizer_that_reads_more(model, processor, monkeypatch):
    monkeypatch.setattr(type(model.model.resampler), "required_inputs", ("cls_features",))
    with pytest.raises(ValueError, match="reads cls_features beside the patch features"):
        ImageEncoder(model, processor, features={})
