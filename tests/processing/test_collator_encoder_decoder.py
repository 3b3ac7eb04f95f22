"""Batches for encoder-decoder language models: what the encoder reads in training is what it reads when asked."""

from tests.tiny import assistant, example, tiny_processor, tiny_tokenizer, user
from vistok.processing.collator import VisualLanguageCollator


def test_the_encoder_reads_the_prompt_as_the_processor_will_write_it_when_asked():
    processor = tiny_processor(tiny_tokenizer(add_eos=True))
    messages = [user("how many?"), assistant("two")]
    batch = VisualLanguageCollator(processor, is_encoder_decoder=True)([example(messages)])
    prompt = processor.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    asked = processor(text=prompt, return_tensors="pt")["input_ids"]
    assert asked[0, -1] == processor.tokenizer.eos_token_id
    assert batch["input_ids"].tolist() == asked.tolist()


def test_the_target_is_the_answer_and_one_end_token():
    processor = tiny_processor(tiny_tokenizer(add_eos=True))
    batch = VisualLanguageCollator(processor, is_encoder_decoder=True)(
        [example([user("how many?"), assistant("two")])]
    )
    (target,) = batch["labels"].tolist()
    assert processor.tokenizer.decode(target[:-1]).strip() == "two"
    assert target.count(processor.tokenizer.eos_token_id) == 1
    assert target[-1] == processor.tokenizer.eos_token_id
