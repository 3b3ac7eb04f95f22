"""Language statistics of visual tokens: planted distributions are recovered, and sums do not depend on batches."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_image
from tests.tiny_kinds import tiny_vtlmm, tiny_vtlmm_processor
from vistok.evaluation.token_statistics import TokenStatistics, entropy_of, expected_distinct_words
from vistok.evaluation.token_statistics_images import measure_token_statistics, word_counts
from vistok.evaluation.token_statistics_report import token_statistics_markdown, write_token_statistics
from vistok.evaluation.zipf import zipf_probabilities
from vistok.processing.images import BadSampleError, find_images
from vistok.processing.square_images import square_image_processor

MARK, WORD = (",", "punctuation"), ("dog", "word")


def labels(size: int, marks: int = 0) -> list[tuple[str, str]]:
    return [MARK] * marks + [WORD] * (size - marks)


def of_distributions(distributions: np.ndarray, **options) -> TokenStatistics:
    """Statistics of images, `(num_images, num_patches, vocab_size)`."""
    statistics = TokenStatistics(distributions.shape[-1], **options)
    for image in distributions:
        entropy = -(image * np.log(np.maximum(image, 1e-300))).sum(-1)
        statistics.add(image.argmax(-1), image.sum(0), entropy)
    return statistics


class TestPlantedDistributions:
    def test_the_exponent_of_planted_words_lies_within_the_interval(self):
        generator = np.random.default_rng(1)
        statistics = TokenStatistics(400, num_resamples=100)
        for _ in range(250):
            words = generator.choice(400, 40, p=zipf_probabilities(1.1, 400))
            statistics.add(words, np.bincount(words, minlength=400), np.zeros(40))
        fit = statistics.results(labels(400))["zipf"]["most_probable"]["frequent_ranks"]
        low, high = fit["interval"]
        assert low < 1.1 < high
        assert 0 < high - low < 0.1
        assert fit["distance"] < 0.02
        assert 20 < fit["num_ranks"] < 400

    def test_entropies_and_mutual_information_are_those_of_the_planted_world(self):
        # Half the patches are certain of word 0, the others divide between words 0 and 1: by hand in nats.
        certain, divided = [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]
        entropy = of_distributions(np.array([[certain, divided]] * 3)).results(labels(3))["entropy"]
        pooled = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert entropy["pooled"]["value"] == pytest.approx(pooled, abs=1e-12)
        assert entropy["mean_of_patches"]["value"] == pytest.approx(math.log(2) / 2, abs=1e-12)
        assert entropy["mutual_information"]["value"] == pytest.approx(pooled - math.log(2) / 2, abs=1e-12)
        assert entropy["of_uniform"]["value"] == math.log(3)

    def test_patches_that_are_all_alike_say_nothing_about_their_word(self):
        same = np.tile([0.7, 0.2, 0.1], (4, 5, 1))
        found = of_distributions(same).results(labels(3))["entropy"]["mutual_information"]
        assert found["value"] == pytest.approx(0, abs=1e-12)
        assert found["interval"] == pytest.approx([0, 0], abs=1e-6)

    def test_the_share_of_punctuation_marks(self):
        marks = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.8, 0.2]]])
        shares = of_distributions(marks).results(labels(2, marks=1))["kinds"]["punctuation"]
        assert shares["num_tokens"] == 1
        assert shares["most_probable"]["value"] == 0.75
        assert shares["expected"]["value"] == pytest.approx(2.5 / 4)
        low, high = shares["most_probable"]["interval"]
        assert 0 <= low < 0.75 < high <= 1

    def test_new_words_per_image(self):
        words = [[0, 0], [0, 1], [2, 1]]
        statistics = TokenStatistics(4)
        for of_image in words:
            statistics.add(np.array(of_image), np.bincount(of_image, minlength=4), np.zeros(2))
        results = statistics.results(labels(4))
        orders = list(itertools.permutations(words))
        expected = [np.mean([len(set().union(*order[:many])) for order in orders]) for many in (1, 2, 3)]
        assert results["distinct_words"] == 3
        assert results["new_words"]["images"] == [1, 2, 3]
        assert results["new_words"]["distinct_words_in_order"] == [1, 2, 3]
        assert results["new_words"]["distinct_words_expected"] == pytest.approx(expected)
        assert results["new_words"]["new_words_expected"] == pytest.approx(np.diff([0, *expected]))
        assert results["new_words"]["expected_in_another_image"] == pytest.approx(1 / 3)

    def test_the_most_frequent_words_are_told_with_the_images_they_are_in(self):
        statistics = TokenStatistics(3)
        statistics.add(np.array([2, 2, 1]), np.array([0.0, 1, 2]), np.zeros(3))
        statistics.add(np.array([2, 0, 0]), np.array([2.0, 0, 1]), np.zeros(3))
        first, second, third = statistics.results(labels(3, marks=1))["top_words"]
        assert (first["token_id"], first["count"], first["num_images"], first["share"]) == (2, 3, 2, 0.5)
        assert (second["token_id"], second["word"], second["kind"], second["num_images"]) == (0, ",", "punctuation", 1)
        assert third["rank"] == 3

    def test_resampling_whole_images_makes_wider_intervals_than_single_patches_would(self):
        # Each image has a word of its own 64 times: 60 observations, not 3,840.
        generator = np.random.default_rng(0)
        alike, apart = TokenStatistics(2), TokenStatistics(2)
        for word in generator.integers(0, 2, 60):
            for statistics, words in ((alike, np.full(64, word)), (apart, generator.integers(0, 2, 64))):
                statistics.add(words, np.bincount(words, minlength=2), np.zeros(64))
        widths = []
        for statistics in (alike, apart):
            low, high = statistics.results(labels(2, 1))["kinds"]["word"]["most_probable"]["interval"]
            widths.append(high - low)
        assert widths[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(60), rel=0.25)
        assert widths[1] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(60 * 64), rel=0.25)

    def test_one_image_has_numbers_and_no_intervals(self):
        results = of_distributions(np.full((1, 2, 3), 1 / 3)).results(labels(3))
        assert results["entropy"]["pooled"] == {
            "value": pytest.approx(math.log(3)),
            "corrected": None,
            "interval": None,
        }
        assert results["zipf"]["expected"]["all_ranks"]["interval"] is None
        assert results["zipf"]["most_probable"]["all_ranks"] is None

    def test_the_seed_decides_the_intervals_alone(self):
        distributions = np.random.default_rng(0).dirichlet(np.ones(6), (8, 4))
        one, same, other = (
            of_distributions(distributions, seed=seed).results(labels(6))["entropy"]["pooled"] for seed in (0, 0, 1)
        )
        assert one == same
        assert one["value"] == other["value"] and one["interval"] != other["interval"]


@pytest.mark.parametrize(
    ("num_images", "vocab_size", "spread"),
    [(40, 12, None), (40, 12, 5.0), (60, 300, None), (60, 300, 8.0)],
    ids=["few words", "few words, each image its own", "many words", "many words, each image its own"],
)
def test_intervals_of_entropies_cover_those_of_the_planted_world(num_images, vocab_size, spread):
    generator = np.random.default_rng(0)
    shares = zipf_probabilities(1.0, vocab_size)
    # A patch is a word, and its distribution 70 % that word and 30 % the next ones.
    kernel = np.array([0.7, 0.2, 0.1])
    distributions = sum(share * np.roll(np.eye(vocab_size), place, axis=1) for place, share in enumerate(kernel))
    of_patch = -float(kernel @ np.log(kernel))
    pooled = entropy_of(shares @ distributions)
    truth = {"most_probable_words": entropy_of(shares), "pooled": pooled, "mutual_information": pooled - of_patch}
    covered, rounds = dict.fromkeys(truth, 0), 60
    for _ in range(rounds):
        statistics = TokenStatistics(vocab_size, num_resamples=100, seed=int(generator.integers(1 << 30)))
        for _ in range(num_images):
            own = shares if spread is None else generator.dirichlet(spread * shares + 1e-9)
            counts = generator.multinomial(32, own)
            words = np.repeat(np.arange(vocab_size), counts)
            statistics.add(words, counts @ distributions, np.full(32, of_patch))
        for name, found in statistics.entropies().items():
            if name in truth:
                covered[name] += found["interval"][0] <= truth[name] <= found["interval"][1]
    assert all(number >= 0.88 * rounds for number in covered.values()), covered


def test_the_interval_of_the_mean_entropy_of_patches_covers_it_where_images_differ():
    generator, covered, rounds = np.random.default_rng(0), 0, 100
    for _ in range(rounds):
        statistics = TokenStatistics(2, num_resamples=100, seed=int(generator.integers(1 << 30)))
        for _ in range(40):
            patches = int(generator.integers(5, 30))
            own = generator.exponential(0.2)  # an entropy that all patches of the image have
            statistics.add(np.zeros(patches, dtype=int), np.array([patches, 0.0]), np.full(patches, own))
        low, high = statistics.entropies()["mean_of_patches"]["interval"]
        covered += low <= 0.2 <= high
    assert covered >= 0.88 * rounds


class TestRefusals:
    @pytest.mark.parametrize(
        ("tokens", "expected", "entropy", "message"),
        [
            ([0, 3], [1.0, 1, 0], [0.0, 0], "beyond the 3"),
            ([], [0.0, 0, 0], [], "no patch"),
            ([0, 1], [1.0, 1], [0.0, 0], r"expected \(num_patches,\)"),
            ([0, 1], [1.0, 1, 0], [0.0, np.nan], "not finite"),
            ([0, 1], [np.nan, 1, 0], [0.0, 0], "sum to nan over 2 patches"),
        ],
    )
    def test_what_is_no_distribution_is_refused_and_named(self, tokens, expected, entropy, message):
        with pytest.raises(ValueError, match=f"[Ii]mage 1 .*{message}"):
            TokenStatistics(3).add(np.array(tokens, dtype=int), np.array(expected), np.array(entropy))

    def test_statistics_of_nothing_are_refused(self):
        with pytest.raises(ValueError, match="no image"):
            TokenStatistics(3).results(labels(3))

    def test_labels_of_another_vocabulary_are_refused(self):
        with pytest.raises(ValueError, match="2 labels were given for a vocabulary of 3"):
            of_distributions(np.full((1, 2, 3), 1 / 3)).results(labels(2))


def test_entropy_of_counts():
    assert entropy_of(np.array([2, 2, 0, 4])) == pytest.approx(1.5 * math.log(2))


def test_distinct_words_of_a_part_are_the_mean_over_all_choices():
    in_images = np.array([1, 2, 4, 0, 3])
    has = [set(range(count)) for count in in_images]  # word w is in the first so many of 4 images
    points = np.arange(5)
    expected = [
        np.mean([sum(bool(images & set(chosen)) for images in has) for chosen in itertools.combinations(range(4), m)])
        for m in points
    ]
    assert expected_distinct_words(in_images, points, 4) == pytest.approx(expected)


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "photos" / "more").mkdir(parents=True)
        for number in range(5):
            tiny_image(number, size=(24, 24)).save(tmp_path / "photos" / f"{number}.png")
        tiny_image(9, size=(40, 10)).save(tmp_path / "photos" / "more" / "wide.PNG")
        (tmp_path / "photos" / "notes.txt").write_text("no picture")
        return tmp_path / "photos"

    @pytest.mark.parametrize("rank", [None, 6])
    def test_counts_of_an_image_are_those_of_the_whole_distribution(self, rank, monkeypatch):
        monkeypatch.setattr("vistok.modeling.vocabulary_distributions.rows_per_tile", lambda *_: 2)
        model = tiny_vtlmm(vm_head_rank=rank)
        pixel_values = torch.randn(1, 3, 24, 24)
        found = model.get_visual_tokens(pixel_values, top_k=1, return_distribution=True)
        features = model.model.get_adapter_features(pixel_values).last_hidden_state[0]
        tokens, expected, entropy = word_counts(features, model.model.vm_head)
        assert tokens.tolist() == found.token_ids[0, :, 0].tolist()
        assert expected == pytest.approx(found.distribution[0].sum(0).double().numpy(), abs=1e-5)
        assert entropy == pytest.approx(found.entropy[0].numpy(), abs=1e-4)

    def test_numbers_do_not_depend_on_the_batch(self, folder):
        model, processor = tiny_vtlmm(), tiny_vtlmm_processor()
        files = find_images([folder])
        one, all_at_once = (
            measure_token_statistics(model, processor, files, batch_size=size, num_resamples=20) for size in (1, 6)
        )
        assert one["num_images"] == 6
        assert one["top_words"] == [
            {**word, "expected_share": pytest.approx(word["expected_share"], abs=1e-6)}
            for word in all_at_once["top_words"]
        ]
        assert one["entropy"]["pooled"]["value"] == pytest.approx(all_at_once["entropy"]["pooled"]["value"], abs=1e-5)
        assert one["entropy"]["pooled"]["interval"] == pytest.approx(
            all_at_once["entropy"]["pooled"]["interval"], abs=1e-4
        )

    def test_only_patches_of_the_image_are_counted(self, tmp_path):
        processor = tiny_vtlmm_processor()
        processor.image_processor = square_image_processor(processor.image_processor)
        for name, size in (("square", (24, 24)), ("wide", (24, 8))):
            tiny_image(1, size=size).save(tmp_path / f"{name}.png")
        results = measure_token_statistics(tiny_vtlmm(), processor, find_images([tmp_path]), num_resamples=0)
        assert results["num_patches"] == 9 + 3

    def test_class_tokens_are_no_words_of_the_image(self, folder):
        patches_alone = tiny_vtlmm()
        with_class = tiny_vtlmm(vision_feature_select_strategy="full")
        with_class.load_state_dict(patches_alone.state_dict())
        one, other = (
            measure_token_statistics(model, tiny_vtlmm_processor(), find_images([folder]), num_resamples=0)
            for model in (patches_alone, with_class)
        )
        assert one["num_patches"] == 6 * 9 and one == other

    def test_a_damaged_image_ends_the_count_unless_it_may_be_left_out(self, folder):
        (folder / "2.png").write_bytes(b"no image")
        model, processor, files = tiny_vtlmm(), tiny_vtlmm_processor(), find_images([folder])
        with pytest.raises(BadSampleError, match=r"2\.png"):
            measure_token_statistics(model, processor, files)
        results = measure_token_statistics(model, processor, files, num_resamples=2, skip_unreadable=True)
        assert results["num_images"] == 5
        assert [file.rsplit("/", 1)[-1] for file in results["unreadable"]] == ["2.png"]

    def test_a_model_without_the_head_is_told(self, folder):
        from tests.tiny import tiny_gvt

        with pytest.raises(ValueError, match=r"GVTForConditionalGeneration .* has no visual modelling head"):
            measure_token_statistics(tiny_gvt(), None, find_images([folder]))


class TestReport:
    @pytest.fixture
    def results(self):
        generator = np.random.default_rng(0)
        texts = [(text, "symbol") for text in ("|", "`", "中", "<b>", "ال")]
        statistics = of_distributions(generator.dirichlet(np.full(40, 0.1), (30, 16)), num_resamples=30)
        return {"model": "runs/vtlmm", **statistics.results(texts + labels(35, marks=5)), "command": "vistok words …"}

    def test_three_files_are_written(self, results, tmp_path):
        files = write_token_statistics(results, tmp_path / "new" / "folder")
        assert [file.name for file in files] == [f"token_statistics.{end}" for end in ("json", "md", "png")]
        assert json.loads(files[0].read_text()) == json.loads(json.dumps(results))
        assert files[1].read_text() == token_statistics_markdown(results)
        assert Image.open(files[2]).width > 1500

    def test_the_page_holds_the_numbers(self, results):
        page = token_statistics_markdown(results)
        fit = results["zipf"]["expected"]["frequent_ranks"] or results["zipf"]["expected"]["all_ranks"]
        assert f"{fit['exponent']:.3f} [{fit['interval'][0]:.3f}, {fit['interval'][1]:.3f}]" in page
        assert f"{results['entropy']['pooled']['value']:.3f} [" in page
        assert "30 images, 480 patches" in page

    def test_labels_do_not_break_tables(self, results):
        rows = [line for line in token_statistics_markdown(results).splitlines() if "| symbol |" in line]
        assert len(rows) > 3
        assert {line.replace("\\|", "").count("|") for line in rows if line.startswith("| symbol") is False} == {8}

    def test_one_image_and_one_word_are_drawn_too(self, tmp_path):
        statistics = TokenStatistics(2, num_resamples=3)
        statistics.add(np.array([1, 1]), np.array([0.0, 2.0]), np.zeros(2))
        files = write_token_statistics(statistics.results(labels(2)), tmp_path)
        assert "too few" in files[1].read_text()
