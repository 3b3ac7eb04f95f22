"""Tiny random image-text-to-text models of transformers, with processors made of the tiny tokenizer."""

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tests.tiny import (
    IMAGE_SIZE,
    PATCH_SIZE,
    livelier,
    tiny_clip_config,
    tiny_llama_config,
    tiny_t5_config,
    tiny_tokenizer,
)

USER_ASSISTANT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    "{% else %} {{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def _ready(model, tokenizer):
    torch.manual_seed(0)
    model = livelier(model).eval()
    for generation_config in (model.generation_config, *_of_language_model(model)):
        generation_config.eos_token_id = tokenizer.eos_token_id
        generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _of_language_model(model):
    language_model = getattr(model, "language_model", None)
    return [] if getattr(language_model, "generation_config", None) is None else [language_model.generation_config]


def tiny_llava(chat_template=USER_ASSISTANT):
    tokenizer = tiny_tokenizer(add_bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, do_center_crop=False), tokenizer, patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
        chat_template=chat_template,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tiny_clip_config(),
        text_config=tiny_llama_config(max_position_embeddings=256),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return _ready(LlavaForConditionalGeneration(config), tokenizer), processor


def tiny_blip2(text_config=None):
    tokenizer = tiny_tokenizer(add_eos=text_config is not None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = Blip2Processor(BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text_config = text_config or OPTConfig(
        vocab_size=384, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=48,
        max_position_embeddings=128, pad_token_id=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, **sizes).to_dict(),
        qformer_config=Blip2QFormerConfig(vocab_size=384, encoder_hidden_size=32, **sizes).to_dict(),
        text_config=text_config.to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        model.query_tokens.normal_()
    return _ready(model, tokenizer), processor


def tiny_blip2_t5():
    return tiny_blip2(tiny_t5_config())


def tiny_idefics3():
    """The architecture of SmolVLM, whose images become rows and columns of tiles."""
    tokenizer = tiny_tokenizer()
    names = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    names += [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}
    )
    template = USER_ASSISTANT.replace("<image>{{ '\\n' }}", "<image>")
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=template)
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = Idefics3Config(
        vision_config={"image_size": IMAGE_SIZE, "patch_size": 6, **vision},
        text_config=tiny_llama_config(vocab_size=448, max_position_embeddings=512).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    torch.manual_seed(0)
    return _ready(Idefics3ForConditionalGeneration(config), tokenizer), processor


def tiny_paligemma():
    tokenizer = tiny_tokenizer()
    image_processor = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    image_processor.image_seq_length = (IMAGE_SIZE // PATCH_SIZE) ** 2
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = tiny_llama_config(GemmaConfig, vocab_size=1600, head_dim=12)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, vision_use_head=False, projection_dim=48, **sizes
        ).to_dict(),
        text_config=text.to_dict(),
        image_token_index=processor.image_token_id,
        projection_dim=48,
        hidden_size=48,
    )
    torch.manual_seed(0)
    model = _ready(PaliGemmaForConditionalGeneration(config), tokenizer)
    model.generation_config.suppress_tokens = [0, 1, 2, 203, 225, *range(340, 1600)]  # white space, places, segments
    return model, processor


MODELS = {
    "LLaVA": tiny_llava,
    "LLaVA without a template": lambda: tiny_llava(None),
    "BLIP-2": tiny_blip2,
    "BLIP-2 with T5": tiny_blip2_t5,
    "Idefics3, as SmolVLM": tiny_idefics3,
    "PaliGemma": tiny_paligemma,
}
