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

# Images come before the words of their turn, where LLaVA-1.5 moves them (haotian-liu/LLaVA, llava/train/train.py);
# words beside an image lose white space at their ends.
_IMAGES_FIRST = """\
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro images(content, after_image) -%}
{%- if content is not string -%}
{%- for part in content -%}{%- if part['type'] == 'image' -%}{{ image_token + after_image }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro images_first(content) -%}
{%- set shown = images(content, '\\n') -%}
{%- if shown -%}{{ (shown + words(content) | trim) | trim }}{%- else -%}{{ words(content) }}{%- endif -%}
{%- endmacro -%}
"""

# Vicuna v1 with its system prompt (haotian-liu/LLaVA, llava/conversation.py, conv_vicuna_v1): that of LLaVA-1.5.
VICUNA_V1 = (
    _IMAGES_FIRST
    + """\
{%- if messages and messages[0]['role'] != 'system' -%}
{{ 'A chat between a curious user and an artificial intelligence assistant. ' }}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ words(message['content']) + ' ' }}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + words(message['content']) + eos_token }}{% endgeneration %}
{%- else -%}
{{ 'USER: ' + images_first(message['content']) + ' ASSISTANT:' }}
{%- endif -%}
{%- endfor -%}"""
)

# Mistral-instruct (haotian-liu/LLaVA, llava/conversation.py, conv_mistral_instruct): a space stands before the end.
MISTRAL = (
    _IMAGES_FIRST
    + """\
{%- set system = namespace(text='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set system.text = '<<SYS>>\\n' + words(message['content']) + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + words(message['content']) + ' ' + eos_token }}{% endgeneration %}
{%- else -%}
{{ '[INST] ' + system.text + images_first(message['content']) + ' [/INST]' }}
{%- set system.text = '' -%}
{%- endif -%}
{%- endfor -%}"""
)

# Captions of images, without questions: what LLaVA-1.5 aligns its adapter with (conv_llava_plain).
PLAIN = (
    _IMAGES_FIRST
    + """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ words(message['content']) + '\\n' }}{% endgeneration %}
{%- elif message['role'] != 'system' -%}
{{ images(message['content'], '') }}
{%- endif -%}
{%- endfor -%}"""
)

CHAT_TEMPLATES = {
    "question-answer": QUESTION_ANSWER,
    "chatml": CHATML,
    "vicuna": VICUNA,
    "vicuna-v1": VICUNA_V1,
    "mistral": MISTRAL,
    "plain": PLAIN,
}


def get_chat_template(name: str, image_token: str = "<image>") -> str:
    """
    A chat template by its name.

    Args:
        name (`str`): `"question-answer"`, `"chatml"`, `"vicuna"`, `"vicuna-v1"`, `"mistral"` or `"plain"`; or a Jinja
            template, returned as it is.
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
