"""Any image-text-to-text model answers in a batch as it does alone, and likelihoods are those of single rows."""

import pytest
import torch

from tests.tiny import tiny_gvt, tiny_image, tiny_processor, tiny_t5_config
from tests.tiny_image_text import MODELS, tiny_llava, tiny_paligemma
from tests.tiny_kinds import tiny_pseudo_vtlmm, tiny_vtlmm, tiny_vtlmm_processor
from vistok.evaluation.generation_settings import GenerationSettings, RepeatedAnswerPenalty
from vistok.evaluation.image_text_models import ImageTextModel
from vistok.evaluation.prompt_texts import answer_lead, continuation_tokens, render_prompts
from vistok.evaluation.prompts import check_answered
from vistok.processing.images import BadSampleError

PROMPTS = ["what is it?", "is there a dog in the image?", "how many cats are there in the image, and where?", "a?"]
IMAGES = [[tiny_image(seed, (24, 24 + 4 * seed))] for seed in range(len(PROMPTS))]
CONTINUATIONS = ["yes", "no dogs", "three cats and", "blue"]


def composed(text_config=None, template="question-answer"):
    return tiny_gvt(None, text_config), tiny_processor(chat_template=template)


EVERY_MODEL = {
    **MODELS,
    "GVT": composed,
    "GVT with T5": lambda: composed(tiny_t5_config(), "vicuna"),
    "VT-LMM": lambda: (tiny_vtlmm(), tiny_vtlmm_processor(chat_template="question-answer")),
    "VT-LMM with pseudo image features": lambda: (tiny_pseudo_vtlmm(), tiny_vtlmm_processor(chat_template="mistral")),
}


def written_by_hand(name, processor, prompt):
    """The prompt as a user of the model writes it."""
    return {
        "LLaVA": f"USER: <image>\n{prompt} ASSISTANT:",
        "LLaVA without a template": f"<image>\n{prompt}",
        "BLIP-2": prompt,
        "BLIP-2 with T5": prompt,
        "Idefics3, as SmolVLM": f"USER: <image>{prompt} ASSISTANT:",
        "PaliGemma": f"<image>{prompt}",
        "GVT": f"<image>\nQuestion: {prompt} Answer:",
        "GVT with T5": f"USER: <image>\n{prompt} ASSISTANT:",
        "VT-LMM": f"<image>\nQuestion: {prompt} Answer:",
        "VT-LMM with pseudo image features": f"[INST] <image>\n{prompt} [/INST]",
    }[name]


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_a_batch_is_answered_as_each_prompt_alone_by_hand(name):
    model, processor = EVERY_MODEL[name]()
    expected = []
    for prompt, images in zip(PROMPTS, IMAGES):
        inputs = processor(text=written_by_hand(name, processor, prompt), images=images, return_tensors="pt")
        inputs.pop("labels", None)
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        expected.append(processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1, "a model that always says the same would prove nothing"
    assert ImageTextModel(model, processor, 3).generate(PROMPTS, IMAGES, max_new_tokens=6) == expected


def likelihood_by_hand(name, model, processor, prompt, images, continuation):
    """From the logits of a single row without padding; the token behind the prompt's last is the first predicted."""
    text = written_by_hand(name, processor, prompt)
    tokens = processor.tokenizer(" " + continuation, add_special_tokens=False)["input_ids"]
    inputs = dict(processor(text=text, images=images, return_tensors="pt"))
    behind = torch.tensor([tokens])
    if model.config.is_encoder_decoder:
        logits = model(**inputs, labels=behind).logits[0, -len(tokens) :]
    else:
        inputs["input_ids"] = torch.cat([inputs["input_ids"], behind], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = model(**inputs).logits[0, -len(tokens) - 1 : -1]
    suppressed = model.generation_config.suppress_tokens if name.startswith(("GVT", "VT-LMM")) else None
    if suppressed:
        logits[:, suppressed] = -torch.inf
    chosen = logits.double().log_softmax(-1)[range(len(tokens)), tokens]
    return chosen.sum().item(), len(tokens), bool((logits.argmax(-1) == behind[0]).all())


@pytest.mark.parametrize("name", [name for name in EVERY_MODEL if name != "PaliGemma"])
@torch.no_grad()
def test_likelihoods_of_a_batch_are_those_of_single_rows_by_hand(name):
    model, processor = EVERY_MODEL[name]()
    for batch_size in (1, 3):
        found = ImageTextModel(model, processor, batch_size).log_likelihoods(PROMPTS, IMAGES, CONTINUATIONS)
        for row, likelihood in enumerate(found):
            asked = (name, model, processor, PROMPTS[row], IMAGES[row], CONTINUATIONS[row])
            total, num_tokens, is_greedy = likelihood_by_hand(*asked)
            assert likelihood.total == pytest.approx(total, abs=2e-4)
            assert (likelihood.num_tokens, likelihood.is_greedy) == (num_tokens, is_greedy)
            assert likelihood.per_token == pytest.approx(total / num_tokens, abs=1e-4)


@pytest.mark.parametrize("make", [composed, tiny_llava])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"repetition_penalty": 1.5}, {"num_beams": 2}])
def test_beams_and_penalties_are_those_of_each_prompt_alone(make, options):
    model, processor = make()
    alone = ImageTextModel(model, processor, 1).generate(PROMPTS, IMAGES, max_new_tokens=8, **options)
    together = ImageTextModel(model, processor, 4).generate(PROMPTS, IMAGES, max_new_tokens=8, **options)
    assert together == alone
    assert alone != ImageTextModel(model, processor, 1).generate(PROMPTS, IMAGES, max_new_tokens=8)


def test_a_penalty_is_that_of_transformers_without_the_prompt():
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    ours, theirs = RepeatedAnswerPenalty(1.5), RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=4)
    tokens = torch.randint(0, 20, (3, 9), generator=generator)
    for length in range(4, 10):
        scores = torch.randn(3, 20, generator=generator)
        assert torch.equal(ours(tokens[:, :length], scores), theirs(tokens[:, :length], scores.clone()))


def test_images_are_brought_to_the_size_asked_for_before_the_processor_sees_them():
    large = [[tiny_image(seed, (80, 50))] for seed in range(4)]
    small = [[image.resize((30, 20), 3)] for (image,) in large]
    for make in (composed, tiny_llava):
        answerer = ImageTextModel(*make(), 4)
        expected = answerer.log_likelihoods(PROMPTS, small, CONTINUATIONS)
        examples = [{"images": images, "id": str(row), "row": row} for row, images in enumerate(large)]
        content = [[{"type": "image"}, {"type": "text", "text": prompt}] for prompt in PROMPTS]
        reply = {"role": "assistant", "content": [{"type": "text", "text": "-"}]}
        for example, parts in zip(examples, content):
            example["messages"] = [{"role": "user", "content": parts}, reply]
        found = answerer.score(examples, CONTINUATIONS, image_size=(30, 20))
        assert [one.total for one in found] == pytest.approx([one.total for one in expected], abs=1e-4)
        as_they_are = answerer.score(examples, CONTINUATIONS)
        assert [one.total for one in found] != pytest.approx([one.total for one in as_they_are], abs=1e-4)


# Prompts


def example_of(text):
    content = [{"type": "image", "text": None}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": []}], "row": 7}


@pytest.mark.parametrize(
    ("template", "own_prompt", "expected"),
    [
        ("question-answer", False, "<image>\nQuestion: how many? Answer:"),
        ("question-answer", True, "<image>\nhow many?"),
        ("vicuna", True, "USER: <image>\nhow many? ASSISTANT:"),
        ("chatml", True, "<|im_start|>user\n<image>\nhow many?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_prompt_of_its_own_is_not_wrapped_as_a_question_but_stays_in_its_conversation(
    template, own_prompt, expected
):
    processor = tiny_processor(chat_template=template)
    assert render_prompts(processor, [example_of("how many?")], own_prompt) == [expected]


def test_the_prompt_of_the_paper_is_the_one_that_the_model_was_trained_with():
    processor = tiny_processor(chat_template="question-answer")
    (trained,) = render_prompts(processor, [example_of("how many?")])
    assert render_prompts(processor, [example_of("Question: how many? Answer:")], own_prompt=True) == [trained]


@pytest.mark.parametrize(("template", "lead"), [("question-answer", " "), ("vicuna", " "), ("chatml", "")])
def test_an_answer_is_led_in_as_the_template_does(template, lead):
    assert answer_lead(tiny_processor(chat_template=template)) == lead


def test_tokens_that_merge_with_a_continuation_are_replaced():
    processor = tiny_processor()
    whole = processor.tokenizer("three cats", add_special_tokens=False)["input_ids"]
    replaced, tokens = continuation_tokens(processor, "three ca", "ts", "")
    before = processor.tokenizer("three ca", add_special_tokens=False)["input_ids"]
    assert replaced > 0
    assert before[: len(before) - replaced] + tokens == whole


# Refusals


def test_a_model_that_reads_in_both_directions_has_no_likelihoods():
    with pytest.raises(ValueError, match=r"PaliGemma\w+ reads its whole input in both directions"):
        ImageTextModel(*tiny_paligemma()).log_likelihoods(PROMPTS, IMAGES, CONTINUATIONS)


def test_numbers_that_do_not_fit_are_told():
    answerer = ImageTextModel(*composed())
    with pytest.raises(ValueError, match="1 lists of images for 4 prompts"):
        answerer.generate(PROMPTS, IMAGES[:1])
    with pytest.raises(ValueError, match="2 continuations for 4 prompts"):
        answerer.log_likelihoods(PROMPTS, IMAGES, ["a", "b"])
    with pytest.raises(ValueError, match="The continuation '' is empty"):
        answerer.log_likelihoods(PROMPTS[:1], IMAGES[:1], [""])
    with pytest.raises(ValueError, match="batch_size is 0"):
        ImageTextModel(*composed(), 0)
    with pytest.raises(ValueError, match="num_beams is 0"):
        GenerationSettings(num_beams=0)
    with pytest.raises(ValueError, match="repetition_penalty is -1"):
        GenerationSettings(repetition_penalty=-1)
    with pytest.raises(BadSampleError, match="row 7: the last turn"):
        check_answered([{"messages": example_of("a")["messages"][:1], "row": 7}])


def test_a_saved_model_is_loaded_with_its_processor(tmp_path):
    model, processor = tiny_llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = ImageTextModel.from_pretrained(tmp_path, dtype="float32", device="cpu", batch_size=2)
    assert not loaded.is_composed
    expected = ImageTextModel(model, processor).generate(PROMPTS, IMAGES, max_new_tokens=4)
    assert loaded.generate(PROMPTS, IMAGES, max_new_tokens=4) == expected
