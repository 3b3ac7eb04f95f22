"""Distinctive words: what stands out of an image's distributions, from the model to the picture and the page."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_image
from tests.tiny_kinds import tiny_vtlmm, tiny_vtlmm_processor
from vistok.evaluation.token_statistics_images import measure_token_statistics
from vistok.evaluation.word_map import DistinctiveWords, WordMap, read_word_map
from vistok.evaluation.word_map_page import write_word_page
from vistok.evaluation.word_map_picture import word_picture
from vistok.evaluation.word_reference import WordReference, mean_distribution
from vistok.processing.images import BadSampleError
from vistok.processing.square_images import square_image_processor
from vistok.processing.token_labels import TokenLabels

EVERYWHERE, OWN = 40, range(100, 109)


@pytest.fixture(scope="module")
def processor():
    return tiny_vtlmm_processor()


def distributions(model, processor, image) -> torch.Tensor:
    """P' of the patches of an image in float64, by hand."""
    pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.model.get_adapter_features(pixel_values).last_hidden_state[0]
        return torch.softmax(features.double() @ model.model.vm_head.weight.double().t(), -1)


@pytest.fixture(scope="module")
def planted(processor):
    """A model that gives one word to all patches of an image, and each of them less of a word of its own."""
    model, image = tiny_vtlmm(), tiny_image(4)
    pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        inverse = torch.linalg.pinv(model.model.get_adapter_features(pixel_values).last_hidden_state[0].double())
        weight = model.model.vm_head.weight
        weight.zero_()
        weight[EVERYWHERE] = (inverse @ torch.full((9,), 8.0).double()).float()
        weight[list(OWN)] = 6 * inverse.t().float()
    return model, image


class TestPlantedWords:
    def test_a_word_that_is_probable_everywhere_never_comes_first_and_one_of_a_single_patch_does(
        self, planted, processor
    ):
        model, image = planted
        found = read_word_map(model, processor, image, 3, reference=mean_distribution(model, processor, [image]))
        labels = TokenLabels(processor.tokenizer)
        assert set(found.words[..., 0].flatten()) == {labels[EVERYWHERE].text}
        assert found.distinctive.words[..., 0].flatten().tolist() == [labels[number].text for number in OWN]
        assert found.shown is found.distinctive

    def test_numbers_are_those_of_the_formula(self, planted, processor):
        model, image = planted
        found = read_word_map(model, processor, image, 3, reference=mean_distribution(model, processor, [image]))
        p = distributions(model, processor, image)
        terms = p * (p / p.mean(0)).log()
        assert found.distinctive.scores.reshape(9, 3) == pytest.approx(terms.topk(3).values.numpy(), abs=1e-5)
        of_first = p[range(9), list(OWN)]  # behind it, all are 0
        assert found.distinctive.probabilities[..., 0].flatten() == pytest.approx(of_first.numpy(), abs=1e-6)
        assert found.distinctive.divergence.reshape(9) == pytest.approx(terms.sum(-1).numpy(), abs=1e-5)
        assert found.distinctive.scores[..., 0].min() > 0.1


def test_the_mean_divergence_from_an_images_own_mean_is_the_mutual_information_of_patch_and_word(processor, tmp_path):
    model, file = tiny_vtlmm(), tmp_path / "image.png"
    tiny_image(5).save(file)
    found = read_word_map(model, processor, file, reference=mean_distribution(model, processor, [file]))
    statistics = measure_token_statistics(model, processor, [file], num_resamples=0)
    expected = statistics["entropy"]["mutual_information"]["value"]
    assert expected > 0.05 and found.distinctive.divergence.mean() == pytest.approx(expected, abs=1e-4)


class TestReference:
    def test_it_is_the_mean_of_the_patches_of_all_images(self, processor):
        model, images = tiny_vtlmm(), [tiny_image(number) for number in range(3)]
        expected = torch.cat([distributions(model, processor, image) for image in images]).mean(0)
        for batch_size in (1, 2):
            found = mean_distribution(model, processor, images, batch_size=batch_size)
            assert found.distribution.dtype == torch.float64
            assert torch.allclose(found.distribution, expected, atol=1e-7)
        assert found.description == "mean over the 27 patches of 3 images"
        assert mean_distribution(model, processor, images[:1], described="this image").images == "this image"

    def test_class_tokens_and_the_border_of_a_square_are_no_part_of_it(self):
        processor = tiny_vtlmm_processor()
        processor.image_processor = square_image_processor(processor.image_processor)
        model, image = tiny_vtlmm(vision_feature_select_strategy="full"), tiny_image(1, size=(24, 8))
        expected = distributions(model, processor, image)[1:].view(3, 3, -1)[1].mean(0)
        found = mean_distribution(model, processor, [image])
        assert found.num_patches == 3 and torch.allclose(found.distribution, expected, atol=1e-7)

    def test_what_has_no_mean_is_told(self, processor, tmp_path):
        model = tiny_vtlmm()
        with pytest.raises(ValueError, match="no mean of no image"):
            mean_distribution(model, processor, [])
        (tmp_path / "broken.png").write_bytes(b"no image")
        with pytest.raises(BadSampleError, match=r"broken\.png"):
            mean_distribution(model, processor, [tmp_path / "broken.png"])
        with torch.no_grad():
            model.model.vm_head.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="weights of the model may be damaged"):
            mean_distribution(model, processor, [tiny_image()])

    def test_nearest_words_have_none(self, processor):
        reference = WordReference(torch.full((384,), 1 / 384), 9, "this image")
        with pytest.raises(ValueError, match="leave out nearest or reference"):
            read_word_map(tiny_vtlmm(), processor, tiny_image(), nearest=True, reference=reference)

    def test_one_of_another_vocabulary_is_refused(self, processor):
        reference = WordReference(torch.full((7,), 1 / 7), 9, "this image")
        with pytest.raises(ValueError, match=r"reference has the shape \(7,\), expected \(384,\)"):
            read_word_map(tiny_vtlmm(), processor, tiny_image(), reference=reference)


@pytest.mark.parametrize(("size", "grid", "rows"), [((24, 8), (1, 3), slice(3, 6)), ((8, 24), (3, 1), slice(1, 9, 3))])
@pytest.mark.parametrize("nearest", [False, True])
def test_rows_and_columns_of_nothing_but_a_border_are_left_out(size, grid, rows, nearest):
    processor = tiny_vtlmm_processor()
    processor.image_processor = square_image_processor(processor.image_processor)
    model, image = tiny_vtlmm(), tiny_image(2, size=size)
    found = read_word_map(model, processor, image, 1, nearest)
    pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    features = model.model.get_adapter_features(pixel_values).last_hidden_state[0, rows]
    token_ids = model.nearest_text_tokens(features)[1] if nearest else (features @ model.model.vm_head.weight.t())
    token_ids = token_ids[..., 0] if nearest else token_ids.argmax(-1)
    labels = TokenLabels(processor.tokenizer)
    assert found.grid_size == grid
    assert found.words.flatten().tolist() == [labels[number].text for number in token_ids.tolist()]
    assert found.image.size == size and np.abs(np.asarray(found.image).astype(int) - np.asarray(image)).max() <= 1


def distinctive_map(reference="mean over the 2 patches of this image", name="") -> WordMap:
    grid = (1, 2)
    distinctive = DistinctiveWords(
        words=np.array([[["dog", "cat"], ["tree", "sky"]]], dtype=object),
        scores=np.array([[[0.25, 0.125], [0.5, 0.0004]]]),
        probabilities=np.array([[[0.125, 0.1], [0.25, 0.2]]]),
        divergence=np.array([[0.375, 0.625]]),
        reference=reference,
    )
    words = np.array([[[",", "."], [",", "."]]], dtype=object)
    scores = np.array([[[0.5, 0.25], [0.5, 0.25]]])
    image = Image.new("RGB", (60, 30), "grey")
    return WordMap(image, words, scores, np.full(grid, 1.25), name=name, distinctive=distinctive)


class TestShown:
    def test_numbers_that_do_not_fit_are_refused(self):
        fields = {"words": np.full((1, 2, 1), "a"), "scores": np.zeros((1, 2, 1)), "divergence": np.zeros((1, 2))}
        fields |= {"probabilities": np.zeros((1, 2, 1)), "reference": ""}
        for change, message in (
            ({"divergence": np.zeros((2, 2))}, "Distinctive words have the shape"),
            ({"probabilities": np.zeros((1, 2, 2))}, "Distinctive words have the shape"),
            ({"scores": np.full((1, 2, 1), np.nan)}, "not finite"),
        ):
            with pytest.raises(ValueError, match=message):
                DistinctiveWords(**{**fields, **change})
        with pytest.raises(ValueError, match=r"grid of \(1, 2\) patches, expected \(1, 3\)"):
            words = np.full((1, 3, 1), "a")
            WordMap(Image.new("RGB", (3, 1)), words, np.zeros((1, 3, 1)), distinctive=DistinctiveWords(**fields))

    def test_the_picture_shows_them_and_says_relative_to_what(self):
        plain = WordMap(*(getattr(distinctive_map(), name) for name in ("image", "words", "scores")))
        shown = WordMap(plain.image, distinctive_map().distinctive.words, plain.scores)
        found = np.asarray(word_picture(distinctive_map(), patch_size=200))
        assert np.array_equal(found[:200], np.asarray(word_picture(shown, patch_size=200)))
        assert not np.array_equal(found[:200], np.asarray(word_picture(plain, patch_size=200)))
        caption = found[200:].astype(int)
        assert len(caption) >= 24 and (caption[:, -5:] == 255).all() and (caption < 128).any()
        other = np.asarray(word_picture(distinctive_map("mean over the 640 patches of 10 images"), patch_size=200))
        assert np.array_equal(found[:200], other[:200]) and not np.array_equal(found, other)

    def test_a_long_caption_is_shortened_and_stays_in_the_picture(self):
        picture = np.asarray(word_picture(distinctive_map("mean over " + 40 * "many "), patch_size=100, shading=True))
        assert (picture[100:, -5:] == 255).all()

    def test_colours_follow_their_scores(self):
        shaded = np.asarray(word_picture(distinctive_map(), patch_size=60, shading=True)).astype(int)
        warmth = [shaded[5, column, 0] - shaded[5, column, 2] for column in (5, 65)]
        assert 0 < warmth[0] < warmth[1]

    def test_the_page_tells_both_orders_of_words(self, tmp_path):
        (file,) = write_word_page([distinctive_map("mean over <b>", name="a.png")], tmp_path / "words.html")
        text = file.read_text(encoding="utf-8")
        assert (
            'aria-label="row 1, column 1: distinctive words: dog 0.25 nats; cat 0.12 nats; all words together 0.38 '
            'nats; most probable words: , 50.0%; . 25.0%; all other words 25.0%; entropy 1.25 nats"'
        ) in text
        assert "P̄: mean over &lt;b&gt;</p>" in text and "shade by pointwise KL divergence" in text
        assert text.count("<h3>distinctive words</h3>") == text.count("<h3>most probable words</h3>") == 2
        # The factor over the reference: exp(0.25 / 0.125) and exp(0.5 / 0.25) of the first words.
        assert text.count("12.5%, 7.39 × P̄") == 1 and text.count("25.0%, 7.39 × P̄") == 1
        assert '<bdi class="word" aria-hidden="true">dog</bdi>' in text
        heads = ["row", "column", "1. distinctive word", "2. distinctive word", "1. word", "2. word"]
        heads += ["KL divergence (nats)", "entropy (nats)"]
        assert "".join(f'<th scope="col">{head}</th>' for head in heads) in text
        assert text.count('style="--width: 100.0%"') == 1 + 2  # of both orders, each by its own highest score
