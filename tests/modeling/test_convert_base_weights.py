"""Converted folders hold the published tensors, load offline through the Auto classes, and do what they should."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model

from vistok.modeling.atomic_folder import FetchError
from vistok.modeling.base_weights import BASE_WEIGHTS, resolve_checkpoint
from vistok.modeling.convert_base_weights import SMOLLM2_TOKENS, convert_dinov2_onnx


@pytest.fixture
def config():
    return Dinov2Config(hidden_size=12, num_attention_heads=2, num_hidden_layers=2, image_size=42, patch_size=14)


@pytest.fixture
def published(config, tmp_path):
    """A small DINOv2 with random weights, and its tensors under the names that such models are published with."""
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "published")
    return model, load_file(tmp_path / "published" / "model.safetensors")


def write_graph(tensors, path):
    """An ONNX file as torch's exporter leaves it: linear weights transposed, positions sliced, both anonymous."""
    onnx = pytest.importorskip("onnx", reason='needs pip install "vistok[convert]"')
    nodes, constants = [], {"decoder.conv.weight": torch.ones(3)}

    def anonymous(value, op_type, node_name):
        name = f"onnx::{op_type}_{len(constants)}"
        constants[name] = value
        nodes.append(onnx.helper.make_node(op_type, ["x", name], [f"{name}_out"], name=node_name))

    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            anonymous(tensor[:, 1:], "Reshape", "/backbone/embeddings/Reshape_1")
            anonymous(tensor[:, :1], "Concat", "/backbone/embeddings/Concat_5")
        elif name.endswith("weight") and tensor.ndim == 2:
            anonymous(tensor.T, "MatMul", f"/backbone/{module.replace('encoder.layer.', 'encoder/layer.', 1)}/MatMul")
        else:
            constants[f"backbone.{name}"] = tensor
    initializers = [onnx.numpy_helper.from_array(value.numpy().copy(), name) for name, value in constants.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "tiny", [], [], initializers)), str(path))
    return path


def test_dinov2_survives_the_way_through_onnx(published, config, tmp_path):
    model, tensors = published
    folder = tmp_path / "converted"
    convert_dinov2_onnx(write_graph(tensors, tmp_path / "tiny.onnx"), folder, config)
    pixel_values = torch.randn(2, 3, 42, 56)
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state
        assert torch.equal(AutoModel.from_pretrained(folder)(pixel_values).last_hidden_state, expected)


def test_every_tensor_that_does_not_fit_is_listed(published, config, tmp_path):
    tensors = published[1]
    del tensors["encoder.layer.1.norm1.bias"]
    tensors["layernorm.weight"] = torch.ones(5)
    tensors["layernorm.extra"] = torch.ones(5)
    with pytest.raises(FetchError) as caught:
        convert_dinov2_onnx(write_graph(tensors, tmp_path / "tiny.onnx"), tmp_path / "converted", config)
    lines = str(caught.value).splitlines()[1:]
    assert lines == [
        "- missing encoder.layer.1.norm1.bias",
        "- unexpected layernorm.extra",
        "- layernorm.weight has shape (5,), expected (12,)",
    ]


def test_image_processor_normalises_as_imagenet_does_and_needs_no_torchvision(published, config, tmp_path):
    folder = tmp_path / "converted"
    convert_dinov2_onnx(write_graph(published[1], tmp_path / "tiny.onnx"), folder, config)
    processor = AutoImageProcessor.from_pretrained(folder)
    image = Image.new("RGB", (448, 300), (255, 0, 51))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    expected = (np.array([1.0, 0.0, 0.2]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert pixel_values.shape == (1, 3, 224, 224)
    assert np.allclose(pixel_values[0].numpy(), expected[:, None, None], atol=1e-5)


@pytest.mark.real_weights("dinov2-small")
def test_dinov2_small_is_complete_and_finite():
    folder = resolve_checkpoint("vistok:dinov2-small")
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert sum(p.numel() for p in model.parameters()) == BASE_WEIGHTS["dinov2-small"].parameters == 22_056_576
    assert model.embeddings.position_embeddings.shape == (1, 1 + 37 * 37, 384)
    image = Image.new("RGB", (320, 240), "orange")
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    assert output.last_hidden_state.shape == (1, 257, 384)
    assert len(output.hidden_states) == 13
    assert all(torch.isfinite(state).all() for state in output.hidden_states)


@pytest.fixture(scope="module")
def smollm2():
    folder = resolve_checkpoint("vistok:smollm2-135m")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.real_weights("smollm2-135m")
def test_smollm2_is_a_plain_bfloat16_model(smollm2):
    model, _ = smollm2
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == BASE_WEIGHTS["smollm2-135m"].parameters == 134_515_008
    assert getattr(model.config, "quantization_config", None) is None
    assert model.config.tie_word_embeddings and model.config.rms_norm_eps == 1e-5


@pytest.mark.real_weights("smollm2-135m")
def test_smollm2_ends_a_turn_with_its_end_token(smollm2):
    model, tokenizer = smollm2
    assert {key: getattr(tokenizer, key) for key in SMOLLM2_TOKENS} == SMOLLM2_TOKENS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192


@pytest.mark.real_weights("smollm2-135m")
def test_smollm2_splits_digits_off_and_gives_the_text_back(smollm2):
    # What llama.cpp's rule for "smollm" gives: every digit alone, white space before it in one piece.
    _, tokenizer = smollm2
    assert tokenizer.tokenize("a  12\n\n3") == ["a", "ĠĠ", "1", "2", "ĊĊ", "3"]
    text = "A dog's 2 balls cost 3.50 €,\n\tnaïve!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.real_weights("smollm2-135m")
def test_smollm2_answers_a_chat_question(smollm2):
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
