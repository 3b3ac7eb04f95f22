"""The image detokenizer: denoising loss, guided sampling, and the diffusion checkpoints that it starts from."""

import json
import sys

import pytest
import torch

from tests.tiny import calls, same
from tests.tiny_setok import (
    DRAWN_SIZE,
    save_diffusion_checkpoint,
    seeds,
    tiny_detokenizer_config,
    tiny_unet_config,
    tokens_of,
)
from vistok import FeatureMapper, ImageDetokenizer, ImageDetokenizerConfig
from vistok.modeling.diffusion_parts import load_diffusion_parts
from vistok.modeling.trained_weights import CheckpointError

BETAS = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 50}


def tiny_detokenizer(latent: bool = False, **kwargs) -> ImageDetokenizer:
    return ImageDetokenizer(tiny_detokenizer_config(latent, **kwargs)).eval()


def images(count: int = 2, size: int = DRAWN_SIZE) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeds(7)[0])


def remaining_signal(timesteps: torch.Tensor) -> torch.Tensor:
    """ᾱ_t of the planted noise schedule."""
    betas = torch.linspace(BETAS["beta_start"], BETAS["beta_end"], BETAS["num_train_timesteps"], dtype=torch.float64)
    return (1 - betas).cumprod(0)[timesteps].float()[:, None, None, None]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_squared_error_of_what_the_unet_predicts(prediction_type):
    model = tiny_detokenizer(scheduler_config={**BETAS, "prediction_type": prediction_type})
    (tokens, mask), clean = tokens_of(4, 2), images()
    noise, timesteps = torch.randn_like(clean), torch.tensor([3, 40])
    output = model(tokens, mask, clean, noise=noise, timesteps=timesteps)
    left, clean = remaining_signal(timesteps), clean * 2 - 1
    noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
    velocity = left.sqrt() * noise - (1 - left).sqrt() * clean
    target = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type]
    condition = model.mapper(tokens, mask)
    prediction = model.unet(noisy, timesteps, encoder_hidden_states=condition).sample
    assert torch.allclose(output.target, target, atol=1e-5)
    assert output.loss.item() == pytest.approx((prediction - target).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_in_training_the_error_of_the_image_weighs_as_much_as_its_signal(prediction_type):
    scheduler = {**BETAS, "prediction_type": prediction_type}
    model = tiny_detokenizer(scheduler_config=scheduler, snr_bounds=[2, 20.0], condition_dropout=0.0)
    (tokens, mask), clean = tokens_of(4, 2, 3), images(3)
    noise, timesteps = torch.randn_like(clean), torch.tensor([1, 20, 49])
    evaluated = model(tokens, mask, clean, noise=noise, timesteps=timesteps)
    assert evaluated.loss.item() == pytest.approx((evaluated.prediction - evaluated.target).square().mean().item())
    output = model.train()(tokens, mask, clean, noise=noise, timesteps=timesteps)
    # The image that follows from what was predicted, solved for in another way than by weights.
    left, clean = remaining_signal(timesteps).double(), (clean * 2 - 1).double()
    noisy, predicted = left.sqrt() * clean + (1 - left).sqrt() * noise, output.prediction.double()
    estimate = {
        "epsilon": (noisy - (1 - left).sqrt() * predicted) / left.sqrt(),
        "v_prediction": left.sqrt() * noisy - (1 - left).sqrt() * predicted,
        "sample": predicted,
    }[prediction_type]
    errors = (estimate - clean).square().mean((1, 2, 3))
    ratios = (left / (1 - left)).flatten().tolist()
    assert ratios[0] > 20 > ratios[1] > 2 > ratios[2]
    weights = torch.tensor([20.0, ratios[1], 2.0], dtype=torch.float64)
    assert output.loss.item() == pytest.approx((weights * errors).mean().item(), rel=1e-4)


def test_noise_without_signal_has_no_weight_where_noise_is_predicted():
    scheduler = {**BETAS, "prediction_type": "epsilon", "rescale_betas_zero_snr": True}
    model = tiny_detokenizer(scheduler_config=scheduler, snr_bounds=[1.0, 5.0]).train()
    with pytest.raises(ValueError, match="leaves nothing of the image"):  # whatever steps are drawn
        model(*tokens_of(4, 2), images(), timesteps=torch.tensor([3, 4]))


def test_noise_without_signal_has_the_lowest_weight_where_the_image_is_predicted():
    scheduler = {**BETAS, "prediction_type": "sample", "rescale_betas_zero_snr": True}
    model = tiny_detokenizer(scheduler_config=scheduler, snr_bounds=[0.5, 5.0], condition_dropout=0.0).train()
    output = model(*tokens_of(4, 2), images(), timesteps=torch.tensor([49, 49]))
    assert output.loss.item() == pytest.approx(0.5 * (output.prediction - output.target).square().mean().item())


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_sampling_arrives_at_the_image_that_the_unet_points_to(scheduler, monkeypatch):
    model, (tokens, mask) = tiny_detokenizer(scheduler_config={**BETAS, "_class_name": scheduler}), tokens_of(4, 2)
    planted = images() * 2 - 1

    class Pointing:
        def __call__(self, samples, timestep, encoder_hidden_states):
            left = remaining_signal(timestep.flatten())
            noise = (samples - left.sqrt() * planted) / (1 - left).sqrt()
            return type("Output", (), {"sample": noise})

    monkeypatch.setattr(model.unet, "forward", Pointing())
    drawn = model.sample(tokens, mask, seeds(1)[0], num_inference_steps=10, guidance_scale=1)
    assert (drawn - images()).abs().max() < 0.05


def test_guidance_goes_from_the_unconditional_prediction_through_the_conditional_one(monkeypatch):
    model, (tokens, mask) = tiny_detokenizer(), tokens_of(4, 2)
    condition = torch.cat([model.mapper(tokens, mask, torch.tensor([True, True])), model.mapper(tokens, mask)])
    samples, timestep = torch.randn(2, 3, DRAWN_SIZE, DRAWN_SIZE), torch.tensor(7)
    without, with_tokens = (
        model.unet(samples, timestep, encoder_hidden_states=part).sample for part in condition.chunk(2)
    )
    guided = model._predict(samples, timestep, condition, 2.5)
    assert torch.allclose(guided, without + 2.5 * (with_tokens - without), atol=1e-5)
    recorded = calls(monkeypatch, type(model.unet), "forward")
    model.sample(tokens, mask, num_inference_steps=2, guidance_scale=1)
    model.sample(tokens, mask, num_inference_steps=2, guidance_scale=3)
    assert [len(arguments[1]) for arguments, _ in recorded] == [2, 2, 4, 4]


def test_an_image_with_a_seed_of_its_own_is_the_same_in_any_batch():
    model, (tokens, mask) = tiny_detokenizer(), tokens_of(5, 2)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0}
    together = model.sample(tokens, mask, seeds(1, 2), **options)
    alone = model.sample(tokens[1:, :2], None, seeds(2), **options)
    assert torch.allclose(alone, together[1:], atol=1e-4)
    assert same(model.sample(tokens, mask, seeds(1, 2), **options), together)
    assert not torch.allclose(model.sample(tokens, mask, seeds(3, 2), **options)[0], together[0], atol=1e-2)
    assert together.min() >= 0
    assert together.max() <= 1


def test_tokens_are_dropped_in_training_only(monkeypatch):
    model, (tokens, mask), clean = tiny_detokenizer(condition_dropout=0.5), tokens_of(*[3] * 8), images(8)
    recorded = calls(monkeypatch, FeatureMapper, "forward")
    model(tokens, mask, clean)
    model.train()(tokens, mask, clean, generator=seeds(0)[0])
    dropped = [arguments[3] for arguments, _ in recorded]
    assert dropped[0] is None
    assert 0 < dropped[1].sum() < 8


def test_a_seed_decides_on_noise_steps_and_dropped_tokens():
    model, (tokens, mask), clean = tiny_detokenizer(latent=True).train(), tokens_of(4, 2), images(size=16)
    first, again, other = (model(tokens, mask, clean, generator=seeds(seed)[0]) for seed in (0, 0, 1))
    assert same(first.loss, again.loss)
    assert not same(first.loss, other.loss, 1e-3)


def test_latents_are_scaled_as_the_vae_says_and_back():
    vae = {"scaling_factor": 0.5, "shift_factor": 0.1}
    model = tiny_detokenizer(latent=True)
    model.vae.register_to_config(**vae)
    clean = images(size=16)
    mean = model.vae.encode(clean * 2 - 1).latent_dist
    drawn = model.encode_images(clean, seeds(0)[0])
    assert torch.allclose(drawn, (mean.sample(seeds(0)[0]) - 0.1) * 0.5, atol=1e-6)
    expected = (model.vae.decode(drawn / 0.5 + 0.1).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode_latents(drawn), expected, atol=1e-6)


def test_without_a_vae_pixels_go_there_and_back():
    model = tiny_detokenizer()
    assert torch.allclose(model.decode_latents(model.encode_images(images())), images(), atol=1e-6)


def test_squares_of_pixels_are_places_with_channels():
    unet = tiny_unet_config(in_channels=12, out_channels=12)
    model = tiny_detokenizer(unet_config=unet, pixel_patch_size=2, num_inference_steps=2)
    assert model.config.image_size == 2 * DRAWN_SIZE
    clean = images(size=2 * DRAWN_SIZE)
    places = model.encode_images(clean)
    assert places.shape == (2, 12, DRAWN_SIZE, DRAWN_SIZE)
    square = clean[0, :, 2:4, 4:6] * 2 - 1  # second row, third column
    assert torch.allclose(places[0, :, 1, 2], square.flatten(), atol=1e-6)
    assert torch.allclose(model.decode_latents(places), clean, atol=1e-6)
    tokens, mask = tokens_of(4, 2)
    assert model(tokens, mask, clean, generator=seeds(0)[0]).loss.isfinite()
    assert model.sample(tokens, mask, seeds(1, 2)).shape == clean.shape


@pytest.mark.parametrize("latent", [False, True])
def test_the_unet_sees_where_a_place_lies(latent):
    channels = 4 if latent else 3
    unet = tiny_unet_config(in_channels=channels + 8, out_channels=channels)
    model = tiny_detokenizer(latent=latent, unet_config=unet, num_position_channels=8, num_inference_steps=2)
    seen = []
    model.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens, mask = tokens_of(4, 2)
    noise = torch.randn(2, channels, DRAWN_SIZE, DRAWN_SIZE, generator=seeds(0)[0])
    clean = images(size=model.config.image_size)
    output = model(tokens, mask, clean, noise=noise, timesteps=torch.tensor([3, 900]), generator=seeds(0)[0])
    assert output.prediction.shape == noise.shape and output.loss.isfinite()
    grid = torch.stack(torch.meshgrid(*[torch.arange(DRAWN_SIZE)] * 2, indexing="ij")).float()
    for waves, place in zip(seen[0][0, channels:].unflatten(0, (2, 4)), grid):  # rows, then columns
        assert torch.allclose(waves, torch.stack([place.sin(), (place / 1e2).sin(), place.cos(), (place / 1e2).cos()]))
    assert same(seen[0][0, channels:], seen[0][1, channels:])
    assert not seen[0].isnan().any() and seen[0].shape[1] == channels + 8
    assert model.sample(tokens, mask, seeds(1, 2), guidance_scale=2.0).shape == clean.shape


def test_the_vae_gets_no_gradient_and_all_else_does():
    model, (tokens, mask) = tiny_detokenizer(latent=True).train(), tokens_of(4, 2)
    model(tokens, mask, images(size=16)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"vae.{name}" for name, _ in model.vae.named_parameters()}


def test_gradient_checkpointing_reaches_the_unet_and_changes_no_gradient():
    model, (tokens, mask) = tiny_detokenizer(condition_dropout=0.0).train(), tokens_of(4, 2)
    noise, timesteps, gradients = torch.randn(2, 3, 8, 8), torch.tensor([3, 40]), []
    for _ in range(2):
        model.zero_grad()
        model(tokens, mask, images(), noise=noise, timesteps=timesteps).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.unet.modules())
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*gradients))


def test_the_default_is_sd_15():
    with torch.device("meta"):
        model = ImageDetokenizer._from_config(ImageDetokenizerConfig())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert (count["unet"], count["vae"]) == (859_520_964, 83_653_863)
    assert model.config.image_size == 512


@pytest.mark.parametrize("latent", [False, True])
def test_it_comes_back_from_a_folder(latent, tmp_path):
    model, (tokens, mask) = tiny_detokenizer(latent), tokens_of(4, 2)
    model.save_pretrained(tmp_path)
    loaded = ImageDetokenizer.from_pretrained(tmp_path)
    for name in ("unet_config", "vae_config", "scheduler_config"):
        assert getattr(loaded.config, name) == getattr(model.config, name)
    options = {"num_inference_steps": 3}
    again, before = (which.sample(tokens, mask, seeds(1, 2), **options) for which in (loaded, model))
    assert same(again, before)


@pytest.mark.parametrize("latent", [False, True])
def test_a_checkpoint_of_diffusers_gives_unet_vae_and_noise(latent, tmp_path):
    parts = load_diffusion_parts(save_diffusion_checkpoint(tmp_path, latent))
    model = ImageDetokenizer(ImageDetokenizerConfig(**parts.configs))
    missing = model.load_state_dict(parts.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert all(name.startswith("mapper.") for name in missing.missing_keys)
    assert (model.vae is not None) == latent
    assert model.config.scheduler_config["_class_name"] == "PNDMScheduler"
    assert model.config.scheduler_config["beta_schedule"] == "scaled_linear"
    tokens = torch.randn(1, 2, model.mapper.config.token_size)
    assert model.eval().sample(tokens, num_inference_steps=2).shape[-1] == model.config.image_size


def test_what_is_no_diffusion_checkpoint_is_one_clear_error(tmp_path):
    folder = save_diffusion_checkpoint(tmp_path)
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(CheckpointError, match="cannot be loaded as a diffusion checkpoint"):
        load_diffusion_parts(folder)
    weights.write_bytes(whole)
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(CheckpointError, match="not a UNet2DConditionModel"):
        load_diffusion_parts(folder)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        load_diffusion_parts(folder)


def test_without_the_extra_the_error_names_it(monkeypatch):
    config = tiny_detokenizer_config()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'diffusers is needed here.*pip install "vistok\[generation\]"'):
        ImageDetokenizer(config)


def test_images_that_do_not_fit_are_named():
    model, (tokens, mask) = tiny_detokenizer(), tokens_of(4, 2)
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\), expected \(batch, 3, 8, 8\)"):
        model(tokens, mask, images(size=16))
    with pytest.raises(ValueError, match="from -1 to 1, expected 0 to 1"):
        model(tokens, mask, torch.linspace(-1, 1, 384).view(2, 3, 8, 8))
    with pytest.raises(ValueError, match="from nan to nan"):
        model(tokens, mask, images() * torch.nan)


def test_sampling_that_makes_no_sense_is_refused():
    model, (tokens, mask) = tiny_detokenizer(), tokens_of(4, 2)
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        model.sample(tokens, mask, seeds(1, 2, 3))
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        model.sample(tokens, mask, num_inference_steps=0)
    tokens[1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 2 images \(the first is number 1\) are not finite"):
        model.sample(tokens, mask, num_inference_steps=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unet_config": tiny_unet_config(in_channels=4, out_channels=4)}, "in_channels=4.*expected 3"),
        ({"unet_config": tiny_unet_config(no_such_field=4)}, "unet_config does not make.*no_such_field"),
        ({"unet_config": tiny_unet_config(norm_num_groups=3)}, "unet_config does not make"),
        ({"unet_config": tiny_unet_config(sample_size=None)}, "sample_size=None"),
        ({"unet_config": tiny_unet_config(cross_attention_dim=[8, 16])}, "cross_attention_dim="),
        ({"condition_dropout": 1.5}, "condition_dropout is 1.5"),
        ({"snr_bounds": [5.0]}, "snr_bounds is \\[5.0\\], expected the lowest and the highest"),
        ({"snr_bounds": [5.0, 1.0]}, "snr_bounds is"),
        ({"snr_bounds": [-1.0, 1.0]}, "snr_bounds is"),
        ({"snr_bounds": [0.0, 0.0]}, "snr_bounds is"),
        ({"snr_bounds": [1.0, float("inf")]}, "snr_bounds is"),
        ({"snr_bounds": [1.0, float("nan")]}, "snr_bounds is"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"pixel_patch_size": 0}, "pixel_patch_size is 0"),
        ({"pixel_patch_size": 2}, "in_channels=3.*expected 12.*squares of 2 × 2 pixels"),
        ({"latent": True, "pixel_patch_size": 2}, "pixel_patch_size is 2"),
        ({"num_position_channels": 6}, "num_position_channels is 6, expected a multiple of 4"),
        ({"num_position_channels": 4}, "in_channels=3.*expected 7 and 3.*and 4 of positions"),
    ],
)
def test_configs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_detokenizer(**fields)


def test_an_unknown_scheduler_or_prediction_is_refused():
    tokens, mask = tokens_of(4, 2)
    with pytest.raises(ValueError, match="'EulerianScheduler', which is no scheduler"):
        tiny_detokenizer(scheduler_config={"_class_name": "EulerianScheduler"}).sample(tokens, mask)
    with pytest.raises(ValueError, match="'FlowMatchEulerDiscreteScheduler', which samples with other noise"):
        tiny_detokenizer(scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler"}).sample(tokens, mask)
    with pytest.raises(ValueError, match="prediction_type='velocity'"):
        tiny_detokenizer(scheduler_config={"prediction_type": "velocity"})(tokens, mask, images())
