"""The feature mapper: a Q-Former that starts from BERT."""

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from tests.tiny import same
from tests.tiny_setok import TOKEN_SIZE, tiny_mapper_config, tokens_of
from vistok import FeatureMapper, FeatureMapperConfig
from vistok.modeling.trained_weights import CheckpointError


def tiny_mapper(**kwargs) -> FeatureMapper:
    return FeatureMapper(FeatureMapperConfig(**tiny_mapper_config(condition_size=20, **kwargs))).eval()


def save_bert(folder, **kwargs) -> BertModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    bert = BertModel(BertConfig(vocab_size=30, **{**sizes, **kwargs})).eval()
    bert.save_pretrained(folder)
    return bert


def test_by_default_four_of_twelve_layers_attend_to_the_tokens():
    assert FeatureMapperConfig().num_cross_attention_layers == 4
    mapper = tiny_mapper(num_hidden_layers=12, cross_attention_frequency=3)
    crossing = [index for index, layer in enumerate(mapper.qformer.encoder.layer) if layer.has_cross_attention]
    assert crossing == [0, 3, 6, 9]
    assert len(crossing) == mapper.config.num_cross_attention_layers


def test_the_condition_has_a_row_for_every_query_and_follows_the_tokens():
    tokens, mask = tokens_of(4, 4)
    condition = tiny_mapper()(tokens, mask)
    assert condition.shape == (2, 3, 20)
    assert not torch.allclose(condition[0], condition[1], atol=1e-4)


def test_padding_changes_no_condition():
    mapper, (tokens, mask) = tiny_mapper(), tokens_of(5, 2)
    together = mapper(tokens, mask)
    assert torch.allclose(mapper(tokens[1:, :2]), together[1:], atol=1e-5)
    tokens[1, 2:] = 9.0
    assert torch.allclose(mapper(tokens, mask), together, atol=1e-6)


def test_the_condition_of_no_image_knows_nothing_of_the_tokens():
    mapper, (tokens, mask) = tiny_mapper(), tokens_of(5, 2, 3)
    condition = mapper(tokens, mask, torch.tensor([True, True, False]))
    assert torch.allclose(condition[0], condition[1], atol=1e-5)
    assert torch.allclose(condition[2], mapper(tokens, mask)[2], atol=1e-5)
    assert torch.allclose(mapper(mapper.no_image_token)[0], condition[0], atol=1e-5)


def test_a_layer_from_bert_computes_what_it_computes_in_bert(tmp_path):
    bert = save_bert(tmp_path)
    mapper = FeatureMapper.from_bert(str(tmp_path), **tiny_mapper_config(condition_size=20))
    states = torch.randn(2, 5, 16)
    for index in (1, 2):  # without cross-attention in between
        theirs = bert.encoder.layer[index](states)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        ours = mapper.qformer.encoder.layer[index](states, None, None, query_length=5)
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(mapper.qformer.layernorm.weight, bert.embeddings.LayerNorm.weight)


def test_cross_attention_and_queries_are_new_beside_bert(tmp_path):
    save_bert(tmp_path)
    torch.manual_seed(1)
    one = FeatureMapper.from_bert(str(tmp_path), token_size=TOKEN_SIZE, num_queries=3)
    torch.manual_seed(2)
    other = FeatureMapper.from_bert(str(tmp_path), token_size=TOKEN_SIZE, num_queries=3)
    weights = dict(other.named_parameters())
    differ = {name for name, parameter in one.named_parameters() if not torch.equal(parameter, weights[name])}
    assert {"queries", "no_image_token", "projection.weight"} <= differ
    assert all(".crossattention." in name for name in differ - {"queries", "no_image_token", "projection.weight"})
    assert one.config.hidden_size == 16
    assert one.config.num_hidden_layers == 4


def test_what_is_no_bert_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    RobertaModel(RobertaConfig(vocab_size=30, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="type roberta"):
        FeatureMapper.from_bert(str(tmp_path))


def test_a_bert_of_other_sizes_is_refused(tmp_path):
    save_bert(tmp_path, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match="num_hidden_layers=2, the feature mapper num_hidden_layers=4"):
        tiny_mapper().load_bert(str(tmp_path))


def test_a_truncated_bert_is_one_clear_error(tmp_path):
    save_bert(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        FeatureMapper.from_bert(str(tmp_path))


def test_every_weight_gets_a_gradient():
    mapper, (tokens, mask) = tiny_mapper().train(), tokens_of(4, 2)
    mapper(tokens, mask, torch.tensor([False, True])).square().sum().backward()
    assert [name for name, parameter in mapper.named_parameters() if parameter.grad is None] == []


def test_it_comes_back_from_a_folder(tmp_path):
    mapper, (tokens, mask) = tiny_mapper(), tokens_of(4, 2)
    mapper.save_pretrained(tmp_path)
    assert same(FeatureMapper.from_pretrained(tmp_path)(tokens, mask), mapper(tokens, mask))


def test_tokens_that_do_not_fit_are_named():
    mapper, (tokens, mask) = tiny_mapper(), tokens_of(4, 2)
    with pytest.raises(ValueError, match=r"\(2, 4, 11\).*token_size=12"):
        mapper(tokens[..., 1:], mask)
    with pytest.raises(ValueError, match=r"Images \[1\] have no visual token"):
        mapper(tokens, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).bool())
    with pytest.raises(ValueError, match="hidden_size=16 is no multiple of num_attention_heads=3"):
        FeatureMapperConfig(hidden_size=16, num_attention_heads=3)
