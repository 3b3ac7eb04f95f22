"""What a Setokim with a bank of real tokens learns and writes, in memory, on disk, in few bits and saved."""

import pytest
import torch
from transformers import BitsAndBytesConfig

from tests.modeling.test_modeling_setokim import ROWS, written_out
from tests.modeling.test_setokim_writing import BUDGET, eager_model
from tests.modeling.test_token_bank import score
from tests.tiny import IMAGE_TOKEN_ID, batch, same
from tests.tiny_setokim import MAX_TOKENS, START, images_of_lengths, tiny_setokim
from vistok import SetokimForConditionalGeneration, SetokimModel
from vistok.modeling.quantized_weights import is_quantized


def with_bank(model, num_tokens=12, seed=1):
    """A tiny Setokim with random tokens and scores that tell them apart."""
    model.add_token_bank(num_tokens)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.token_bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def test_the_loss_of_choices_is_that_of_each_row_alone():
    model = with_bank(tiny_setokim())
    images, _ = images_of_lengths(model, 2)
    rows = [[9, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342], [7, 8, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]]
    inputs = batch(*rows)
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), torch.tensor(-100))
    both = model(**inputs, pixel_values=images, labels=labels)
    parts = []
    for row, image in zip(rows, images):
        ids = torch.tensor([row])
        alone = model(input_ids=ids, pixel_values=image[None], labels=ids)
        parts.append(alone.choice_losses)
        assert float(alone.loss_choice) == pytest.approx(float(alone.choice_losses.mean()))
        total = alone.loss_lm + alone.loss_visual + alone.loss_length + 0.3 * alone.loss_choice
        assert float(alone.loss) == pytest.approx(float(total))
    torch.testing.assert_close(both.choice_losses, torch.cat(parts), rtol=1e-4, atol=1e-4)
    tokens = model.get_image_features(images[:1])
    kept = tokens.tokens[0][tokens.token_mask[0]]
    states = model.model(input_ids=torch.tensor(rows[:1]), pixel_values=images[:1]).last_hidden_state[0]
    candidates = [*model.token_bank.tokens, *kept]
    for place in range(len(kept)):
        state = states[1 + place]  # of [Img] and of the tokens before
        scores = torch.tensor([score(model.token_bank, state.detach(), c.detach()) for c in candidates])
        expected = scores.logsumexp(0) - scores[12 + place]
        assert float(parts[0][place]) == pytest.approx(float(expected), rel=1e-3)


def test_gradients_come_in_one_order_whether_images_are_written_or_not():
    """ZeRO adds up what processes have in the order in which it came; another one mixes up weights."""
    model = with_bank(tiny_setokim())
    images, _ = images_of_lengths(model, 1)
    slots = [START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]
    arrived: list[str] = []
    for name, parameter in model.token_bank.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))

    def order(labels, **inputs):
        arrived.clear()
        model(**inputs, labels=labels).loss.backward()
        return list(arrived)

    written, read = torch.tensor([[9, *slots, 8]]), torch.tensor([[7, 8, 9]])
    of_written = order(written, input_ids=written, pixel_values=images)
    of_read = order(written.masked_fill(written == IMAGE_TOKEN_ID, -100), input_ids=written, pixel_values=images)
    assert len(of_written) == 6 and of_read == of_written == order(read, input_ids=read)


@torch.no_grad()
def test_an_edit_is_chosen_among_the_bank_its_source_and_itself():
    model = with_bank(tiny_setokim())
    images, lengths = images_of_lengths(model, 3)
    slots = [START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]
    inputs = batch([9, *slots, 8], [7, *slots, 10, 11, *slots], [5, 6, 7])
    placeholders = inputs["input_ids"] == IMAGE_TOKEN_ID
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    first = int(placeholders[1].nonzero()[MAX_TOKENS])  # of the image that is written
    labels[0, placeholders[0]] = -100
    labels[1, :first] = labels[1, :first].masked_fill(placeholders[1, :first], -100)
    output = model(**inputs, pixel_values=images, labels=labels)
    assert len(output.choice_losses) == lengths[2]
    features = model.get_image_features(images)
    _, source, result = (tokens[kept] for tokens, kept in zip(features.tokens, features.token_mask))
    states = model.model(**inputs, pixel_values=images).last_hidden_state[1]
    for place, loss in enumerate(output.choice_losses):
        candidates = [*model.token_bank.tokens, *source, *result]
        scores = torch.tensor([score(model.token_bank, states[first - 1 + place], one) for one in candidates])
        expected = scores.logsumexp(0) - scores[12 + len(source) + place]
        assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_images_are_written_of_tokens_of_the_bank_and_of_the_prompt():
    model = with_bank(eager_model())
    images, _ = images_of_lengths(model)
    inputs = batch(*written_out(ROWS)) | {"pixel_values": images}
    settings = {"max_new_tokens": 24, "max_image_tokens": BUDGET, "return_dict_in_generate": True}
    output = model.generate(**inputs, **settings, do_sample=False)
    features = model.get_image_features(images)
    real = torch.cat([model.token_bank.tokens, features.tokens[features.token_mask]])
    written = [image for row in output.visual_tokens for image in row]
    assert written
    for image in written:
        assert float(torch.cdist(image, real).min(1).values.max()) < 1e-5
        assert len(image.unique(dim=0)) == len(image)
    regressed = model.generate(**inputs, **settings, do_sample=False, choose_tokens=False)
    plain = eager_model().generate(**inputs, **settings, do_sample=False)
    assert torch.equal(regressed.sequences, plain.sequences)
    assert all(
        same(a, b, 1e-5)
        for one, other in zip(regressed.visual_tokens, plain.visual_tokens)
        for a, b in zip(one, other)
    )


def test_images_of_a_batch_are_those_of_each_row_alone():
    model = with_bank(tiny_setokim())
    images, _ = images_of_lengths(model, 2)
    slots = [START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]
    rows = [[5, *slots, 6, START], [*slots, 9, 10, START]]
    tokens, mask = model.write_image(**batch(*rows), pixel_values=images)
    for number, row in enumerate(rows):
        alone, kept = model.write_image(**batch(row), pixel_values=images[number : number + 1])
        assert same(tokens[number][mask[number]], alone[0][kept[0]], 1e-4)


def test_seeds_decide_what_is_drawn():
    model = with_bank(tiny_setokim())
    prompts = batch([5, 6, START], [7, 8, START])

    def write(seed):
        own = [torch.Generator().manual_seed(seed + row) for row in range(2)]
        return model.write_image(**prompts, token_temperature=1e4, token_generator=own)[0]

    first, again, other = write(0), write(0), write(10)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_bank_is_saved_and_loaded_with_the_model(tmp_path):
    model = with_bank(tiny_setokim())
    model.save_pretrained(tmp_path)
    loaded = SetokimForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.token_bank_size == 12
    for name, parameter in model.token_bank.named_parameters():
        found = loaded.token_bank.get_parameter(name)
        assert torch.equal(found, parameter)
    ids = torch.tensor([[9, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]])
    loaded(input_ids=ids, pixel_values=images_of_lengths(model, 2)[0][:1], labels=ids).loss.backward()
    assert loaded.token_bank.query.weight.grad.abs().sum() > 0 and loaded.token_bank.tokens.grad is None
    SetokimModel.from_pretrained(tmp_path)  # without what writes


def test_a_bank_on_disk_chooses_and_learns_what_it_does_in_memory(tmp_path):
    model = with_bank(tiny_setokim())
    model.save_pretrained(tmp_path / "saved")
    device_map = {"model": "cpu", "lm_head": "cpu", "output_projection": "cpu", "token_bank": "disk"}
    loaded = SetokimForConditionalGeneration.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert loaded.token_bank.tokens.is_meta
    loaded.generation_config = model.generation_config
    prompts = batch([5, 6, START], [7, 8, START])
    assert torch.equal(loaded.write_image(**prompts)[0], model.write_image(**prompts)[0])
    ids = torch.tensor([[9, START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]])
    pixels = images_of_lengths(model, 2)[0][:1]
    words = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for inputs in (
            {"input_ids": ids, "pixel_values": pixels, "labels": ids},
            {"input_ids": words, "labels": words},
        ):
            assert float(loaded(**inputs).loss) == pytest.approx(float(model(**inputs).loss), rel=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_banks_are_not_quantised(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    with_bank(tiny_setokim()).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = SetokimForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config)
    quantised = {name for name, module in model.named_modules() if is_quantized(module)}
    assert quantised and not any(name.startswith("token_bank") for name in quantised)
    tokens, mask = model.write_image(torch.tensor([[5, START]]), max_image_tokens=3)
    assert float(torch.cdist(tokens[mask], model.token_bank.tokens).min(1).values.max().detach()) < 1e-5


def test_what_a_generator_gives_afterwards_is_the_same_in_a_batch():
    """As the noise of the diffusion, which comes from the generator that drew the tokens."""
    model, rows = with_bank(tiny_setokim()), [[5, 6, START], [7, 8, START], [9, 10, START]]

    def states(rows, seeds):
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        mask = model.write_image(**batch(*rows), token_temperature=10.0, token_generator=own)[1]
        return mask.sum(1).tolist(), [generator.get_state() for generator in own]

    lengths, together = states(rows, range(3))
    assert len(set(lengths)) > 1, "images that end at different steps"
    for number, row in enumerate(rows):
        assert torch.equal(states([row], [number])[1][0], together[number])


def test_a_bank_that_nothing_has_filled_is_an_error_and_no_image():
    model = tiny_setokim(token_bank_size=5)
    with pytest.raises(ValueError, match=r"The bank of 5 tokens is empty.*choose_tokens=False"):
        model.write_image(torch.tensor([[5, START]]))
    assert model.write_image(torch.tensor([[5, START]]), choose_tokens=False)[0].abs().sum() > 0


def test_damaged_weights_are_told_of_where_tokens_are_chosen():
    model = with_bank(tiny_setokim())
    with torch.no_grad():
        model.token_bank.query.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="are not finite"):
        model.write_image(torch.tensor([[5, START]]))


def test_too_few_images_are_told_of_as_by_a_model_that_regresses():
    model = with_bank(tiny_setokim())
    slots = [START, *[IMAGE_TOKEN_ID] * MAX_TOKENS, 342]
    inputs = batch([5, *slots, *slots, 6]) | {"pixel_values": images_of_lengths(model, 2)[0][:1]}
    for choose in (True, False):
        with pytest.raises(ValueError, match=r"has 12 image placeholders, the 1 images have 6"):
            model.generate(**inputs, max_new_tokens=2, choose_tokens=choose)


def test_a_model_without_a_bank_does_not_choose():
    with pytest.raises(ValueError, match="choose_tokens needs a model with a bank"):
        tiny_setokim().write_image(torch.tensor([[5, START]]), choose_tokens=True)
    for model, options in ((tiny_setokim(), {}), (with_bank(tiny_setokim()), {"choose_tokens": False})):
        with pytest.raises(ValueError, match=r"token_temperature is 0\.5, but tokens are regressed"):
            model.write_image(torch.tensor([[5, START]]), token_temperature=0.5, **options)


def test_a_bank_of_another_size_is_an_error():
    model = with_bank(tiny_setokim())
    bank = model.token_bank
    model.add_token_bank(12)
    assert model.token_bank is bank
    with pytest.raises(ValueError, match="has a bank of 12 tokens already, not of 13"):
        model.add_token_bank(13)
