"""Tiny random models, a tiny tokenizer and tiny images: everything that the tests of models are made of."""

import functools
import inspect

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from vistok import EvaVisionConfig, GVTConfig, GVTForConditionalGeneration, GVTProcessor, PerceiverResamplerConfig
from vistok.modeling.vision_features import build_vision_tower

IMAGE_SIZE = 24
PATCH_SIZE = 8
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
NUM_LATENTS = 3
VOCAB_SIZE = 384
IMAGE_TOKEN_ID = 340  # what `tiny_processor` gives the placeholder

_CORPUS = [
    "Question: what does the image describe? Answer: a red circle and two blue squares",
    "Question: is there a dog in the image? Answer: yes, there is a dog",
    "USER: how many cats are there? ASSISTANT: three cats and no dog",
    "<Img> </Img> line one\nline two\n",
    *["a USER: three cats"] * 4,
]
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@functools.cache
def _trained_tokenizer(add_bos: bool, add_eos: bool, trim_offsets: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*_SPECIAL.values(), "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if add_bos or add_eos:
        single = " ".join(["<s>"] * add_bos + ["$A"] + ["</s>"] * add_eos)
        specials = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        steps.append(processors.TemplateProcessing(single=single, pair=None, special_tokens=specials))
    tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer.to_str()


def tiny_tokenizer(
    add_bos: bool = False, add_eos: bool = False, trim_offsets: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 340 tokens: like GPT-2's, or like Llama's (`add_bos`) or T5's (`add_eos`)."""
    tokenizer = Tokenizer.from_str(_trained_tokenizer(add_bos, add_eos, trim_offsets))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def tiny_image_processor(**kwargs) -> CLIPImageProcessorPil:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(**{"size": size, "do_center_crop": False, **kwargs})


def tiny_processor(tokenizer=None, **kwargs) -> GVTProcessor:
    tokenizer = tiny_tokenizer() if tokenizer is None else tokenizer
    return GVTProcessor(tiny_image_processor(), tokenizer, **{"num_image_tokens": NUM_LATENTS, **kwargs})


def tiny_image(seed: int = 0, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> Image.Image:
    """Random pixels, `(width, height)`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tiny_dinov2_config(**kwargs) -> Dinov2Config:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return Dinov2Config(**{**sizes, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, **kwargs})


def tiny_clip_config(**kwargs) -> CLIPVisionConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return CLIPVisionConfig(**{**sizes, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, **kwargs})


def tiny_eva_config(**kwargs) -> EvaVisionConfig:
    # As in EVA-CLIP the feed-forward width is no multiple of anything.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 43}
    return EvaVisionConfig(**{**sizes, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, **kwargs})


def tiny_llama_config(config_class=LlamaConfig, **kwargs):
    """Also of the many language models whose config has Llama's names."""
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return config_class(**{**sizes, **tokens, **kwargs})


def tiny_t5_config(**kwargs) -> T5Config:
    sizes = {"vocab_size": VOCAB_SIZE, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    tokens = {"eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 2}
    return T5Config(**{**sizes, **tokens, **kwargs})


def tiny_resampler_config(**kwargs) -> PerceiverResamplerConfig:
    # As in GVT the inner width (heads x head_dim) is not the hidden size, and the patches are of another width.
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 10}
    sizes |= {"num_latents": NUM_LATENTS, "intermediate_size": 40, "patch_hidden_size": 32}
    return PerceiverResamplerConfig(**{**sizes, **kwargs})


def tiny_gvt_config(vision_config=None, text_config=None, resampler_config=None, **kwargs) -> GVTConfig:
    return GVTConfig(
        vision_config=vision_config or tiny_dinov2_config(),
        text_config=text_config or tiny_llama_config(),
        resampler_config=resampler_config or tiny_resampler_config(),
        **{"image_token_id": IMAGE_TOKEN_ID, **kwargs},
    )


def livelier(model, factor: float = 6.0):
    """
    Scales the weights of a random model up, in place: with the tiny initial ones, attention is uniform and a wrong
    mask or position would go unnoticed.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor if parameter.std() < 0.1 else 1.0)
    return model


def tiny_gvt(*args, attn_implementation=None, **kwargs) -> GVTForConditionalGeneration:
    """A random GVT in evaluation mode. Its generation config knows no end: as many tokens as asked for are written."""
    config = tiny_gvt_config(*args, **kwargs)
    extra = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = livelier(GVTForConditionalGeneration._from_config(config, **extra)).eval()
    with torch.no_grad():
        for name, parameter in model.model.resampler.named_parameters():
            if name.endswith("v_proj.weight"):
                parameter.mul_(4)  # so that queries say more about the image than about themselves
    for generation_config in {id(m): m.generation_config for m in _generators(model)}.values():
        generation_config.eos_token_id = None
        generation_config.pad_token_id = 2
        generation_config.suppress_tokens = [IMAGE_TOKEN_ID]  # as composing does
    return model


def _generators(model):
    yield model
    if model.config.is_encoder_decoder:
        yield model.model.language_model


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two computations agree but for rounding, which differs from run to run with the alignment of memory."""
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def pixels(num_images: int, seed: int = 0, size: int = IMAGE_SIZE, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, 3, size, size, generator=generator).to(dtype)


def words(count: int, seed: int = 0) -> list[int]:
    """Random token ids, neither special tokens nor the image placeholder."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 340, (count,), generator=generator).tolist()


IMAGE = [IMAGE_TOKEN_ID] * NUM_LATENTS


def batch(*rows: list[int], side: str = "left", pad: int = 2) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows of token ids, padded."""
    length = max(len(row) for row in rows)
    input_ids, mask = [], []
    for row in rows:
        filler, ones, zeros = [pad] * (length - len(row)), [1] * len(row), [0] * (length - len(row))
        input_ids.append(filler + row if side == "left" else row + filler)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return {"input_ids": torch.tensor(input_ids), "attention_mask": torch.tensor(mask)}


def user(*parts: str) -> dict:
    """A user's turn; `"<image>"` stands for an image."""
    content = [
        {"type": "image", "text": None} if part == "<image>" else {"type": "text", "text": part} for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def image_bytes(seed: int = 0) -> dict:
    """An image as data sources give it."""
    import io

    stream = io.BytesIO()
    tiny_image(seed).save(stream, "PNG")
    return {"path": None, "bytes": stream.getvalue()}


def example(messages: list[dict], images: int | list[dict] = 0, row: int = 0) -> dict:
    """A training example."""
    images = [image_bytes(seed) for seed in range(images)] if isinstance(images, int) else images
    return {"id": str(row), "source": "planted", "row": row, "images": images, "messages": messages}


def save_base_models(folder, vision_config=None, text_config=None, **tokenizer_options):
    """Saves a tiny vision and a tiny language checkpoint as users have them, always the same; returns both paths."""
    vision, text = folder / "vision", folder / "text"
    text_config = text_config or tiny_llama_config(vocab_size=340)
    auto_class = AutoModelForSeq2SeqLM if text_config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        livelier(build_vision_tower(vision_config or tiny_dinov2_config())).save_pretrained(vision)
        livelier(auto_class.from_config(text_config)).save_pretrained(text)
    tiny_image_processor().save_pretrained(vision)
    tiny_tokenizer(**tokenizer_options).save_pretrained(text)
    return str(vision), str(text)


def calls(monkeypatch, owner, name: str) -> list[tuple[tuple, dict]]:
    """Records the calls of a function or method from here on, which is still carried out."""
    recorded: list[tuple[tuple, dict]] = []
    original = inspect.getattr_static(owner, name)

    @functools.wraps(original)
    def recording(*args, **kwargs):
        recorded.append((args, kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, recording)
    return recorded


RESAMPLER_SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 10}
RESAMPLER_SIZES |= {"num_latents": NUM_LATENTS, "intermediate_size": 40}


def compose(base_models, **overrides) -> GVTForConditionalGeneration:
    """A GVT of two saved checkpoints, always the same; what lies between them is small and lively."""
    torch.manual_seed(3)
    model = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES | overrides)
    livelier(model.model.resampler)
    livelier(model.model.projector)
    return model


def inputs_for(model, num_images: int = 2) -> dict[str, torch.Tensor]:
    """A batch of rows with an image each."""
    image = [model.config.image_token_id] * model.config.resampler_config.num_latents
    rows = [[*image, *words(5, seed)] for seed in range(num_images)]
    return batch(*rows) | {"pixel_values": pixels(num_images)}
