"""Chat templates for composed models: how messages with images become one text."""

from transformers import PreTrainedTokenizerBase

# Text of a message whose content is a string or a list of parts; an image part becomes the placeholder.
_CONTENT = """\
{%- macro content_text(content, after_image) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ image_token + after_image }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

# The evaluation prompt of GVT (Section 2.1): "Question: … Answer:". The image comes first.
QUESTION_ANSWER = """\
{%- macro images(content) -%}
{%- if content is not string -%}
{%- for part in content -%}{%- if part['type'] == 'image' -%}{{ image_token }}{{ '\\n' }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + words(message['content']) + eos_token }}{% endgeneration %}
{%- elif message['role'] == 'system' -%}
{{ words(message['content']) + '\\n' }}
{%- else -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{{ images(message['content']) + 'Question: ' + words(message['content']) + ' Answer:' }}
{%- endif -%}
{%- endfor -%}"""

# The format of many instruction-tuned models, SmolLM2 and Qwen among them.
CHATML = (
    _CONTENT
    + """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ content_text(message['content'], '') + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{ content_text(message['content'], '\\n') + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
)

# Vicuna v1.1, the language model of GVT.
VICUNA = (
    _CONTENT
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ content_text(message['content'], '\\n') + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + content_text(message['content'], '') + eos_token }}{% endgeneration %}
{%- else -%}
{{ 'USER: ' + content_text(message['content'], '\\n') + ' ASSISTANT:' }}
{%- endif -%}
{%- endfor -%}"""
)

CHAT_TEMPLATES = {"question-answer": QUESTION_ANSWER, "chatml": CHATML, "vicuna": VICUNA}


def get_chat_template(name: str, image_token: str = "<image>") -> str:
    """
    A chat template by its name.

    Args:
        name (`str`): `"question-answer"`, `"chatml"` or `"vicuna"`; or a Jinja template, returned as it is.
        image_token (`str`): placeholder of an image.

    Returns:
        `str`: a Jinja template.

    Raises:
        ValueError: if the name is unknown.
    """
    if "{" in name:
        return name
    if name not in CHAT_TEMPLATES:
        raise ValueError(f"{name!r} is no chat template; choose {', '.join(CHAT_TEMPLATES)} or pass Jinja text.")
    return "{%- set image_token = '" + image_token + "' -%}\n" + CHAT_TEMPLATES[name]


def adds_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """
    Whether the tokenizer is to add special tokens to a text, by the rule of `apply_chat_template`: not where the
    template has written the first one itself.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): its `bos_token` is what a text may begin with.
        text (`str`): what a chat template wrote.

    Returns:
        `bool`: for the tokenizer's `add_special_tokens`.
    """
    return tokenizer.bos_token is None or not text.startswith(tokenizer.bos_token)


__all__ = ["CHAT_TEMPLATES", "adds_special_tokens", "get_chat_template"]
