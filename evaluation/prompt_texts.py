"""Prompts as texts, through the chat template of any processor, and the tokens of what may follow them."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

Examples = Sequence[Mapping[str, Any]]

PAPER_PROMPT = "Question: {question} Answer:"
"""The evaluation prompt of GVT (Section 2.1), which the chat template `question-answer` writes around a question."""

_ANSWER = "ANSWER"


def render_prompts(processor, examples: Examples, own_prompt: bool = False) -> list[str]:
    """
    Writes examples as prompts for their last answer, with a placeholder for each image.

    Without a chat template the placeholders come first, then the words of all turns. Some processors (BLIP-2,
    InstructBLIP) put placeholders in by themselves; for these there are none.

    Args:
        processor (`ProcessorMixin`): with a chat template or without.
        examples (`list[dict]`): training examples; the last turn of each is no part of its prompt.
        own_prompt (`bool`, *optional*, defaults to `False`):
            The user's text is the whole prompt: where the chat template would write `Question: … Answer:` around it,
            it does not. Templates of conversations (`USER: … ASSISTANT:`) are left as they are.

    Returns:
        `list[str]`: a prompt for each example.
    """
    if not examples:
        return []
    conversations = [[_clean(message) for message in example["messages"][:-1]] for example in examples]
    template = _template(processor)
    if template is None:
        return [_without_template(processor, conversation) for conversation in conversations]
    texts = _render(processor, template, conversations)
    if own_prompt:
        texts = [_unwrapped(text, conversation) for text, conversation in zip(texts, conversations)]
    return texts


def _clean(message: Mapping[str, Any]) -> dict[str, Any]:
    # Some templates take a part for text if it merely has that key.
    parts = [
        {"type": part["type"], **({"text": part["text"]} if part["type"] == "text" else {})}
        for part in message["content"]
    ]
    return {"role": message["role"], "content": parts}


def _template(processor) -> str | None:
    template = getattr(processor, "chat_template", None)
    return template.get("default") if isinstance(template, Mapping) else template


def _render(processor, template: str, conversations, add_generation_prompt: bool = True) -> list[str]:
    texts, _ = render_jinja_template(
        conversations=conversations,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        **processor.tokenizer.special_tokens_map,
    )
    return list(texts)


def _words(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _unwrapped(text: str, conversation) -> str:
    words = _words(conversation[-1])
    before, wrapped, after = text.rpartition(PAPER_PROMPT.format(question=words))
    return before + words + after if wrapped else text


def _without_template(processor, conversation) -> str:
    words = "\n".join(_words(message) for message in conversation)
    num_images = sum(part["type"] == "image" for message in conversation for part in message["content"])
    return _image_prefix(processor) * num_images + words


def _image_prefix(processor) -> str:
    """What stands for an image, before the words, where there is no chat template."""
    token = getattr(processor, "image_token", None)
    if token is None or hasattr(processor, "num_query_tokens"):
        return ""
    token = str(getattr(token, "content", token))
    start, end = (getattr(processor, f"vision_{name}_token", None) for name in ("start", "end"))
    if isinstance(start, str) and isinstance(end, str):
        return start + token + end
    # PaliGemma ends the images with a token of its own.
    return token if type(processor).__name__.startswith("PaliGemma") else f"{token}\n"


def answer_lead(processor) -> str:
    """The white space that the chat template writes between a prompt and its answer; a space without a template."""
    template = _template(processor)
    if template is None:
        return " "
    asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}]
    (prompt,) = _render(processor, template, [asked])
    (whole,) = _render(processor, template, [answered], add_generation_prompt=False)
    lead, found, _ = whole.removeprefix(prompt).partition(_ANSWER)
    return lead if found and whole.startswith(prompt) and not lead.strip() else ""


def continuation_tokens(processor, prompt: str, continuation: str, lead: str) -> tuple[int, list[int]]:
    """
    Tokens of a continuation behind a prompt, as they are when both are tokenized together.

    Args:
        processor (`ProcessorMixin`): has a tokenizer.
        prompt (`str`): from [`render_prompts`].
        continuation (`str`): what may follow.
        lead (`str`): from [`answer_lead`]; left out behind a prompt that ends in white space.

    Returns:
        `tuple[int, list[int]]`: how many of the prompt's last tokens merge with the continuation and are replaced
        (rarely any), and its tokens.

    Raises:
        ValueError: if the continuation is empty.
    """
    if not continuation.strip():
        raise ValueError(f"The continuation {continuation!r} is empty: there is nothing to be probable.")
    if prompt[-1:].isspace() or continuation[:1].isspace():
        lead = ""
    before = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = processor.tokenizer(prompt + lead + continuation, add_special_tokens=False)["input_ids"]
    common = next((place for place, pair in enumerate(zip(before, whole)) if pair[0] != pair[1]), len(before))
    return len(before) - common, whole[common:]


__all__ = ["PAPER_PROMPT", "answer_lead", "continuation_tokens", "render_prompts"]
