"""Features of a frozen tower on disk: the same training as without them, and no half-made cache, ever."""

import pickle
import shutil

import pytest
import torch

from tests.tiny import (
    assistant,
    calls,
    example,
    image_bytes,
    same,
    tiny_dinov2_config,
    tiny_gvt,
    tiny_image,
    tiny_image_processor,
    tiny_processor,
    user,
)
from vistok import VisualLanguageCollator
from vistok.modeling.perceiver_resampler import PerceiverResampler
from vistok.processing import feature_cache
from vistok.processing.feature_cache import FeatureCache, FeatureCacheBuilder
from vistok.processing.images import BadSampleError, image_key

ANSWERS = ["yes", "no", "three cats", "a dog"]


def examples():
    """Four examples with five images, of which four are distinct."""
    chosen = [[0], [1, 2], [1], [3]]
    return [
        example(
            [user(*["<image>"] * len(seeds), "is there a dog?"), assistant(answer)],
            [image_bytes(seed) for seed in seeds],
            row,
        )
        for row, (seeds, answer) in enumerate(zip(chosen, ANSWERS))
    ]


def build(model, folder, data=None, processor=None, **options):
    data = examples() if data is None else data
    return FeatureCache.build(model, processor or tiny_processor(), data, folder, progress_bar=False, **options)


def runs_of(model):
    """Records the batch sizes that the tower is run on."""
    sizes = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", ["full", "default"])
def test_cached_features_are_what_the_tower_gave_and_gives(tmp_path, dtype, strategy, monkeypatch):
    model = tiny_gvt(vision_feature_layer=-2, vision_feature_select_strategy=strategy).to(dtype)
    given, compute = [], model.model.get_vision_features
    with monkeypatch.context() as context:
        context.setattr(model.model, "get_vision_features", lambda pixels: given.append(compute(pixels)) or given[-1])
        cache = build(model, tmp_path, batch_size=1)
    assert len(cache) == 4
    assert set(cache) == {image_key(image_bytes(seed)) for seed in range(4)}
    processor = tiny_processor()
    for seed in range(4):
        pixel_values = processor.image_processor(tiny_image(seed), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model.model.get_vision_features(pixel_values).patch_features[0]
        found = cache[image_key(image_bytes(seed))]
        assert torch.equal(found, given[seed].patch_features[0]) and found.dtype == dtype
        # Computed once more: rounding differs with the alignment of memory.
        assert same(found.float(), expected.float(), 1e-6 if dtype == torch.float32 else 1e-2)


def train(model, collator, steps=3):
    model.requires_grad_(False)
    model.model.resampler.requires_grad_(True)
    model.model.projector.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(steps):
        data = examples()
        loss = model(**collator(data[step % 2 :]), skip_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_training_with_cached_features_is_training_without(tmp_path):
    plain, cached = tiny_gvt().double(), tiny_gvt().double()
    cached.load_state_dict(plain.state_dict())
    processor = tiny_processor()
    tower = cached.model.vision_tower.float()  # the cache keeps what towers have: 32 bits or less
    plain.model.vision_tower.float()
    cache = build(cached, tmp_path, batch_size=2)
    del tower.encoder
    losses = train(plain, VisualLanguageCollator(processor))
    assert losses[0] > losses[2], "nothing was learned"
    assert same(train(cached, VisualLanguageCollator(processor, features=cache)), losses, 1e-6)
    for name, parameter in plain.model.resampler.named_parameters():
        assert same(cached.model.resampler.get_parameter(name), parameter, 1e-5), name


def test_batches_hold_features_in_place_of_pixels(tmp_path):
    model, processor, data = tiny_gvt(), tiny_processor(), examples()
    cache = build(model, tmp_path)
    batch = VisualLanguageCollator(processor, features=cache)(data)
    assert "pixel_values" not in batch
    keys = [image_key(image) for one in data for image in one["images"]]
    assert torch.equal(batch["vision_features"], torch.stack([cache[key] for key in keys]))
    text_only = VisualLanguageCollator(processor, features=cache)([example([user("how many?"), assistant("two")])])
    assert "vision_features" not in text_only


def test_each_distinct_image_is_run_once_and_a_second_build_runs_none(tmp_path):
    model = tiny_gvt()
    sizes = runs_of(model)
    first = build(model, tmp_path, batch_size=3)
    assert sizes == [3, 1]
    second = build(model, tmp_path, batch_size=3)
    assert sizes == [3, 1]
    assert second.folder == first.folder


def changed_weights(model):
    with torch.no_grad():
        next(model.model.vision_tower.parameters()).add_(1e-3)


def permuted_weights(model):
    with torch.no_grad():
        weight = next(p for p in model.model.vision_tower.parameters() if p.dim() == 2 and len(p) > 1)
        weight.copy_(weight.flip(0))


CHANGES = {
    "order of weights": lambda: {"change": permuted_weights},
    "attention": lambda: {"change": lambda model: model.model.vision_tower.set_attn_implementation("eager")},
    "weights": lambda: {"change": changed_weights},
    "layer": lambda: {"config": {"vision_feature_layer": -2}},
    "strategy": lambda: {"config": {"vision_feature_select_strategy": "default"}},
    "precision": lambda: {"change": lambda model: model.to(torch.bfloat16)},
    "size of images": lambda: {"processor": {"size": {"height": 32, "width": 32}}},
    "statistics": lambda: {"processor": {"image_mean": [0.0, 0.0, 0.0]}},
    "images": lambda: {"data": examples()[:2]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_the_features_makes_a_new_cache(tmp_path, name):
    first = build(tiny_gvt(), tmp_path)
    change = CHANGES[name]()
    torch.manual_seed(0)
    model = tiny_gvt(**change.get("config", {}))
    change.get("change", lambda model: None)(model)
    processor = tiny_processor()
    processor.image_processor = tiny_image_processor(**change.get("processor", {}))
    sizes = runs_of(model)
    second = build(model, tmp_path, change.get("data"), processor)
    assert bool(sizes) == (name != "images")  # which the first cache has
    assert second.folder != first.folder
    assert first.folder.exists()


def test_images_that_another_cache_has_are_not_run_again(tmp_path):
    model = tiny_gvt()
    build(model, tmp_path, examples()[:2], batch_size=1)
    sizes = runs_of(model)
    whole = build(model, tmp_path, batch_size=1)
    assert sizes == [1]  # the fourth image alone
    assert same_features(whole, build(model, tmp_path / "elsewhere", batch_size=1))
    again = build(model, tmp_path, examples()[1:], batch_size=1)
    assert len(sizes) == 5  # four for the folder elsewhere
    assert len(again) == 3 and torch.equal(again[image_key(image_bytes(2))], whole[image_key(image_bytes(2))])


def test_features_stay_when_the_cache_that_they_came_from_is_removed(tmp_path):
    model = tiny_gvt()
    first = build(model, tmp_path, examples()[:2], batch_size=1)
    expected = {key: first[key].clone() for key in first}
    whole = build(model, tmp_path, batch_size=1)
    shutil.rmtree(first.folder)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "index.json").write_text("[]")
    whole = FeatureCache(whole.folder)
    assert all(torch.equal(whole[key], value) for key, value in expected.items())
    assert len(build(model, tmp_path, examples()[2:], batch_size=1)) == 2


def test_features_of_other_weights_are_not_taken(tmp_path):
    build(tiny_gvt(), tmp_path, examples()[:2], batch_size=1)
    model = tiny_gvt()
    changed_weights(model)
    sizes = runs_of(model)
    build(model, tmp_path, batch_size=1)
    assert sizes == [1] * 4


def test_order_of_examples_does_not_matter(tmp_path):
    model = tiny_gvt()
    first = build(model, tmp_path)
    assert build(model, tmp_path, examples()[::-1]).folder == first.folder


def builder(model, folder, batch_size=1):
    return FeatureCacheBuilder.of_model(model, tiny_processor(), examples(), folder, batch_size, progress_bar=False)


def same_features(first, second):
    assert set(first) == set(second) and len(first) == len(second)
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_parts", "batch_size", "run"), [(2, 1, [1, 1]), (3, 1, [1]), (9, 1, [1]), (2, 3, [1])])
def test_a_cache_that_is_built_in_parts_is_the_same(tmp_path, dtype, num_parts, batch_size, run):
    model = tiny_gvt().to(dtype)
    whole = builder(model, tmp_path / "whole", batch_size).build()
    sizes = runs_of(model)
    builder(model, tmp_path / "parts", batch_size).build_parts([1], num_parts)
    assert sizes == run
    cache = builder(model, tmp_path / "parts", batch_size).build(num_parts)
    assert same_features(cache, whole) and sum(sizes) == 4, "what lacked was computed, and nothing twice"
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [whole.folder.name], "the parts are gone"
    builder(model, tmp_path / "parts", batch_size).build_parts([0], num_parts)
    assert same_features(build(model, tmp_path / "parts"), whole) and sum(sizes) == 4
    assert same_features(pickle.loads(pickle.dumps(cache)), whole)


def test_parts_of_a_single_batch_are_the_whole(tmp_path):
    for number in range(2):
        builder(tiny_gvt(), tmp_path, batch_size=4).build_parts([number], 2)
    cache = builder(tiny_gvt(), tmp_path, batch_size=4).build(2)
    assert len(cache) == 4 and sorted(path.name for path in cache.folder.iterdir()) == ["features.npy", "index.json"]


def test_a_disk_without_links_gets_a_copy(tmp_path, monkeypatch):
    whole = builder(tiny_gvt(), tmp_path / "whole").build()

    def refuse(*args):
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    torch.manual_seed(0)
    assert same_features(builder(tiny_gvt(), tmp_path / "parts").build(2), whole)


def test_a_cache_of_another_process_that_was_faster_is_taken(tmp_path, monkeypatch):
    model = tiny_gvt()
    slow = builder(model, tmp_path)
    slow.build_parts([0], 2)
    finish = FeatureCacheBuilder._replacing_target

    def overtaken(self):
        if self is slow:
            builder(model, tmp_path).build(2)
        return finish(self)

    monkeypatch.setattr(FeatureCacheBuilder, "_replacing_target", overtaken)
    assert len(slow.build(2)) == 4
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing(tmp_path, error):
    model = tiny_gvt()
    seen = []

    def interrupt(module, args):
        seen.append(1)
        if len(seen) == 3:
            raise error("interrupted")

    hook = model.model.vision_tower.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        build(model, tmp_path, batch_size=1)
    assert not list(tmp_path.rglob("*"))
    hook.remove()
    cache = build(model, tmp_path, batch_size=1)
    assert len(cache) == 4
    assert [path.name for path in tmp_path.iterdir()] == [cache.folder.name]


def test_a_process_that_is_killed_loses_a_part_and_not_all(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_IMAGES_AT_RISK", 2)
    model, sizes = tiny_gvt(), []

    def interrupt(module, args):
        sizes.append(len(args[0]))
        if len(sizes) == 4:
            raise KeyboardInterrupt

    hook = model.model.vision_tower.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(model, tmp_path, batch_size=1)
    hook.remove()
    rest = runs_of(model)
    cache = build(model, tmp_path, batch_size=1)
    assert rest == [1, 1], "the second part alone"
    assert same_features(cache, build(model, tmp_path / "elsewhere", batch_size=1))
    assert [path.name for path in tmp_path.iterdir() if path.name != "elsewhere"] == [cache.folder.name]


def test_an_unreadable_image_is_named_and_nothing_is_left(tmp_path):
    data = examples()
    data[3]["images"] = [{"path": str(tmp_path / "gone.png"), "bytes": None}]
    with pytest.raises(BadSampleError, match=r"gone\.png"):
        build(tiny_gvt(), tmp_path / "cache", data)
    data[3]["images"] = [{"path": None, "bytes": image_bytes(3)["bytes"][:60]}]
    with pytest.raises(BadSampleError, match=r"planted.*row 3"):
        build(tiny_gvt(), tmp_path / "cache", data)
    assert not list(tmp_path.rglob("*.npy"))


def test_an_image_that_was_not_cached_is_named(tmp_path):
    cache = build(tiny_gvt(), tmp_path)
    with pytest.raises(KeyError, match=r"No features are cached for the image 0000.*build the cache"):
        cache["0000"]


def test_a_cache_goes_to_worker_processes_without_its_features(tmp_path):
    cache = build(tiny_gvt(), tmp_path)
    key = image_key(image_bytes(0))
    features = cache[key]
    sent = pickle.dumps(cache)
    assert len(sent) < features.numel() * features.element_size(), "a few paths and keys, no features"
    assert torch.equal(pickle.loads(sent)[key], features)


def test_data_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no images.*turn the cache off"):
        build(tiny_gvt(), tmp_path, [example([user("how many?"), assistant("two")])])


def test_a_tokenizer_that_reads_more_than_patches_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(PerceiverResampler, "required_inputs", ("cls_features",))
    with pytest.raises(ValueError, match=r"reads cls_features beside the patch features.*cache_features off"):
        build(tiny_gvt(), tmp_path)


def test_augmentation_and_cached_features_exclude_one_another(tmp_path):
    with pytest.raises(ValueError, match="drop the image transform or the cache"):
        VisualLanguageCollator(tiny_processor(), image_transform=lambda image: image, features={})


def test_caches_lie_in_the_cache_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTOK_CACHE", str(tmp_path / "of vistok"))
    cache = build(tiny_gvt(tiny_dinov2_config()), None)
    assert (tmp_path / "of vistok") in cache.folder.parents


def test_reading_happens_when_asked_and_no_earlier(tmp_path, monkeypatch):
    import numpy as np

    folder = build(tiny_gvt(), tmp_path).folder
    loads = calls(monkeypatch, np, "load")
    cache = FeatureCache(folder)
    assert len(cache) == 4
    assert not loads
    cache[image_key(image_bytes(0))]
    cache[image_key(image_bytes(1))]
    assert len(loads) == 1


def test_images_may_be_read_as_they_are_stored(tmp_path):
    """With masks that refer to stored pixels, an image is not turned; and the features are not those of the turned."""
    turned = tiny_image(0, (20, 10))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    tower, seen = tiny_gvt().model.vision_tower, []

    def compute(batch):
        seen.extend(image.size for image in batch)
        return torch.zeros(len(batch), 1, 2)

    given = [{"images": [str(tmp_path / "turned.png")]}]
    for options in (None, {"apply_exif_orientation": False}):
        FeatureCacheBuilder(tower, compute, [], given, torch.float32, tmp_path / "cache", load_options=options).build()
    assert seen == [(10, 20), (20, 10)]


def test_options_that_change_nothing_share_a_cache(tmp_path):
    upright, tower = [{"images": [image_bytes(0)]}], tiny_gvt().model.vision_tower
    folders = [
        FeatureCacheBuilder(
            tower, lambda batch: torch.zeros(len(batch), 1, 2), [], upright, torch.float32, tmp_path,
            load_options=options,
        ).build().folder
        for options in (None, {"apply_exif_orientation": False})
    ]  # fmt: skip
    assert folders[0] == folders[1]
