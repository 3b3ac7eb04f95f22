"""Intervals over images and seeds: on planted differences, and by how often they hold what is true."""

import numpy as np
import pytest

from vistok.evaluation.seed_replicates import (
    AVERAGE,
    ImageScores,
    SeedVariance,
    draw_images,
    estimate_contrast,
    estimate_difference,
    estimate_score,
    pooled_seed_variance,
    scores_of_seeds,
)


def scores(values, counts=None) -> ImageScores:
    values = np.asarray(values, dtype=float)
    return ImageScores(values, np.ones(len(values), dtype=int) if counts is None else np.asarray(counts))


def test_questions_are_gathered_by_image_and_images_without_questions_have_none():
    gathered = ImageScores.from_questions([1, 0, 1, 1], ["b", "b", "a", "b"], ["a", "b", "c"])
    assert gathered.sums.tolist() == [1, 2, 0] and gathered.counts.tolist() == [1, 3, 0]
    assert scores_of_seeds({"oc": [gathered]}, "oc").tolist() == [0.75]


def test_the_average_is_over_tasks_seed_by_seed():
    kind = {"oc": [scores([0, 100]), scores([100, 100])], "vqa": [scores([20, 40]), scores([0, 0])]}
    assert scores_of_seeds(kind, AVERAGE).tolist() == [40, 50]


def test_the_variance_between_seeds_is_pooled_over_kinds():
    kinds = [{"oc": [scores([10]), scores([14])]}, {"oc": [scores([50]), scores([50]), scores([53])]}]
    expected = (np.var([10, 14]) * 2 + np.var([50, 50, 53]) * 3) / 3
    assert pooled_seed_variance(kinds, "oc") == SeedVariance(pytest.approx(expected), 3)
    assert pooled_seed_variance([{"oc": [scores([1])]}], "oc") == SeedVariance(0.0, 0)


def test_without_seeds_the_interval_is_that_of_the_images():
    values = np.random.default_rng(0).normal(50, 10, 400)
    found = estimate_score({"oc": [scores(values)]}, "oc", draw_images(400, 4000), SeedVariance(0.0, 0))
    half = 1.96 * values.std() / 20
    assert [found.value, found.low, found.high] == pytest.approx(
        [values.mean(), values.mean() - half, values.mean() + half], abs=0.1
    )


def test_images_on_which_both_models_do_well_or_ill_do_not_widen_a_paired_difference():
    difficulty = np.random.default_rng(0).normal(0, 30, 300)
    own = np.random.default_rng(1).normal(0, 0.01, 300)
    first, second = {"oc": [scores(difficulty + 2 + own)]}, {"oc": [scores(difficulty)]}
    found = estimate_difference(first, second, "oc", draw_images(300, 500), SeedVariance(0.0, 0))
    assert [found.low, found.value, found.high] == pytest.approx([2, 2, 2], abs=0.01)
    assert found.excludes_zero


def test_seeds_widen_a_difference_that_images_alone_would_make_certain():
    images = np.full(200, 50.0)
    first, second = {"oc": [scores(images + 4), scores(images)]}, {"oc": [scores(images - 1), scores(images + 1)]}
    weights = draw_images(200, 4000)
    variance = pooled_seed_variance([first, second], "oc")
    found = estimate_difference(first, second, "oc", weights, variance)
    assert found.value == pytest.approx(2) and found.seeds == pytest.approx((5, -1))
    half = 4.303 * np.sqrt(variance.variance)  # Student's t with two degrees of freedom; 1/2 + 1/2 of the variance
    assert [found.low, found.high] == pytest.approx([2 - half, 2 + half], rel=0.15)
    assert not found.excludes_zero


def test_a_start_that_others_share_has_no_spread_of_seeds():
    images = np.full(200, 50.0)
    start, trained = {"oc": [scores(images)]}, {"oc": [scores(images + 4), scores(images)]}
    variance = pooled_seed_variance([start, trained], "oc")
    of_both, found = (
        estimate_difference(trained, start, "oc", draw_images(200, 4000), variance, without_seeds=fixed)
        for fixed in ((), [start])
    )
    # 1/2 + 1 of the variance of a seed, or 1/2 alone.
    assert (of_both.high - of_both.low) / (found.high - found.low) == pytest.approx(3**0.5)


def test_a_model_in_two_terms_counts_twice_and_one_that_cancels_does_not_count():
    a, b, c = ({"oc": [scores(np.arange(4) * step + value)]} for value, step in ((10.0, 0), (7.0, 3), (1.0, 0)))
    none = SeedVariance(4.0, 5)
    found = estimate_contrast([(a, 0.5), (b, -0.5), (b, 0.5), (c, -0.5)], "oc", draw_images(4, 4000), none)
    alone = estimate_difference(a, c, "oc", draw_images(4, 4000), none)
    assert found.value == pytest.approx(4.5)  # b, whose images differ, is in it with +1 and with −1
    assert found.high - found.low == pytest.approx((alone.high - alone.low) / 2)


@pytest.mark.parametrize(("seed_spread", "image_spread"), [(2.0, 1.0), (0.3, 20.0), (2.0, 15.0)])
def test_95_of_100_intervals_hold_the_true_difference(seed_spread, image_spread):
    generator, held, rounds, images = np.random.default_rng(3), 0, 400, 60
    weights = draw_images(images, 600)

    def train(level, difficulty):
        return {
            "oc": [
                scores(
                    level + generator.normal(0, seed_spread) + difficulty + generator.normal(0, image_spread, images)
                )
                for _ in range(2)
            ]
        }

    for _ in range(rounds):
        difficulty = generator.normal(0, 10, images)
        kinds = [train(level, difficulty) for level in (50, 47, 60, 40, 55, 45)]
        found = estimate_difference(kinds[0], kinds[1], "oc", weights, pooled_seed_variance(kinds, "oc", weights))
        held += found.low <= 3 <= found.high
    assert 0.91 <= held / rounds <= 0.99


def test_answers_that_are_all_alike_are_no_proof_that_there_are_no_others():
    always = {"oc": [scores([0.0] * 30)]}
    weights, none = draw_images(30, 100), SeedVariance(0.0, 0)
    found = estimate_score(always, "oc", weights, none, bounds=(0, 100))
    # Of 30 images at most so many can be others, if none was found with a probability of 2.5 %.
    assert [found.value, found.low, found.high] == pytest.approx([0, 0, 100 * (1 - 0.025 ** (1 / 30))])
    found = estimate_difference(always, always, "oc", weights, none, bounds=(-100, 100))
    assert found.low == pytest.approx(-found.high) and found.high > 10
    found = estimate_contrast([(always, 1.0), (always, -1.0)], "oc", weights, none, bounds=(-100, 100))
    assert found.low < 0 < found.high


def test_the_exact_interval_goes_by_the_images_of_its_own_task():
    always = {"oc": [scores([0.0] * 30)], "mci": [scores([0.0] * 6 + [0.0] * 24, [1] * 6 + [0] * 24)]}
    weights, none = draw_images(30, 100), SeedVariance(0.0, 0)
    of_30, of_6 = (estimate_score(always, task, weights, none, bounds=(0, 100)).high for task in ("oc", "mci"))
    assert of_30 == pytest.approx(100 * (1 - 0.025 ** (1 / 30))) and of_6 == pytest.approx(
        100 * (1 - 0.025 ** (1 / 6))
    )


def test_nothing_is_said_of_an_interval_where_all_images_are_alike_and_there_is_no_greatest_score():
    always = {"caption": [scores([3.0] * 30)]}
    found = estimate_score(always, "caption", draw_images(30, 100), SeedVariance(0.0, 0))
    assert (found.value, found.low, found.high) == (3.0, None, None) and not found.excludes_zero


def test_a_difference_of_differences_leaves_out_what_both_share():
    generator, images = np.random.default_rng(0), 200
    difficulty, of_tuning = generator.normal(0, 30, images), generator.normal(0, 20, images)

    def kind(level, tuned):
        return {"oc": [scores(level + difficulty + tuned * of_tuning + generator.normal(0, 0.5, images))]}

    terms = [(kind(40, 0), 1.0), (kind(50, 0), -1.0), (kind(46, 1), -1.0), (kind(49, 1), 1.0)]
    found = estimate_contrast(terms, "oc", draw_images(images, 1000), SeedVariance(0.0, 0))
    assert found.value == pytest.approx(-7, abs=0.2) and found.high - found.low < 0.5


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="2 scores and 1 images"):
        ImageScores.from_questions([1, 0], ["a"], ["a"])
    with pytest.raises(ValueError, match="not among all images, such as 'b'"):
        ImageScores.from_questions([1], ["b"], ["a"])
    with pytest.raises(ValueError, match="1 of 2 scores are no finite numbers"):
        ImageScores.from_questions([1, float("nan")], ["a", "a"], ["a"])
    with pytest.raises(ValueError, match="'mci' is no task"):
        scores_of_seeds({"oc": [scores([1])]}, "mci")
