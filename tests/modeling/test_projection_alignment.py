"""The projection that is found in closed form: planted words, a direct computation, and where it starts from."""

import math

import numpy as np
import pytest
import torch

from vistok.modeling.projection_alignment import ProjectionAlignment

TOKEN_SIZE, EMBEDDING_SIZE, VOCABULARY, CLASSES = 24, 16, 40, 12
COMMON = 39  # a word of every answer


@pytest.fixture(scope="module")
def planted():
    """Images of two to six objects: a token for each, which looks like its class, and the words of the classes."""
    generator = torch.Generator().manual_seed(0)
    embeddings = 2.0 + torch.randn(VOCABULARY, EMBEDDING_SIZE, generator=generator)
    looks = torch.randn(CLASSES, TOKEN_SIZE, generator=generator)
    examples = []
    for _ in range(400):
        classes = torch.randint(CLASSES, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator)
        noise = torch.randn(len(classes), TOKEN_SIZE, generator=generator)
        examples.append((1.0 + looks[classes] + 0.1 * noise, [*classes.tolist(), COMMON]))
    return embeddings, looks, examples


def aligned(embeddings, examples, **options):
    alignment = ProjectionAlignment(embeddings, **options)
    for tokens, words in examples:
        alignment.add(tokens, words)
    return alignment.solve()


def test_each_token_becomes_the_word_of_its_object_though_no_example_says_which(planted):
    embeddings, looks, examples = planted
    found = aligned(embeddings, examples)
    assert found.num_examples == 400 and found.explained > 0.5
    projected = (1.0 + looks) @ found.weight.T + found.bias - embeddings.mean(0)
    words = embeddings[:CLASSES] - embeddings.mean(0)
    similarity = torch.nn.functional.cosine_similarity(projected[:, None], words[None], dim=-1)
    assert similarity.argmax(1).tolist() == list(range(CLASSES))


def test_words_of_other_images_leave_it_without_anything_to_explain(planted):
    embeddings, _, examples = planted
    shuffled = [(tokens, examples[(row + 7) % len(examples)][1]) for row, (tokens, _) in enumerate(examples)]
    assert aligned(embeddings, shuffled).explained < 0.2 < aligned(embeddings, examples).explained


def test_it_equals_least_squares_with_rows_for_the_penalty(planted):
    embeddings, _, examples = planted
    ridge = 0.3
    found = aligned(embeddings, examples, ridge=ridge)
    tokens = np.concatenate([image.double().numpy() for image, _ in examples])
    mean = tokens.mean(0)
    inputs = np.stack([np.append((image.double().numpy() - mean).sum(0), [len(image), 1.0]) for image, _ in examples])
    targets = np.zeros((len(examples), EMBEDDING_SIZE))
    for row, (_, words) in enumerate(examples):
        for word in set(words):
            share = np.mean([word in others for _, others in examples])
            targets[row] += math.log(1 / share) * embeddings[word].double().numpy()
    penalty = np.sqrt(ridge * (inputs[:, :TOKEN_SIZE] ** 2).sum(0).mean()) * np.eye(TOKEN_SIZE, TOKEN_SIZE + 2)
    solution = np.linalg.lstsq(
        np.concatenate([inputs, penalty]), np.concatenate([targets, np.zeros((TOKEN_SIZE, EMBEDDING_SIZE))])
    )[0]
    explained = 1 - ((targets - inputs @ solution) ** 2).sum() / ((targets - targets.mean(0)) ** 2).sum()
    weight = solution[:TOKEN_SIZE].T
    centered = embeddings.double().numpy() - embeddings.double().numpy().mean(0)
    spread = np.sqrt((((tokens - mean) @ weight.T) ** 2).sum(1).mean())
    weight = weight * np.sqrt((centered**2).sum(1).mean()) / spread
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bias.numpy(), embeddings.double().numpy().mean(0) - weight @ mean, rtol=1e-5)
    assert found.explained == pytest.approx(explained)


def test_projected_tokens_lie_around_the_mean_of_the_words_as_far_from_it_as_they(planted):
    embeddings, _, examples = planted
    found = aligned(embeddings, examples)
    projected = torch.cat([tokens for tokens, _ in examples]) @ found.weight.T + found.bias
    torch.testing.assert_close(projected.mean(0), embeddings.mean(0), atol=1e-4, rtol=0)
    distance = (projected - embeddings.mean(0)).square().sum(1).mean().sqrt()
    torch.testing.assert_close(distance, (embeddings - embeddings.mean(0)).square().sum(1).mean().sqrt())


def test_the_number_of_tokens_may_be_the_same_for_all(planted):
    embeddings, _, examples = planted
    found = aligned(embeddings, [(tokens[:2], words) for tokens, words in examples])
    assert torch.isfinite(found.weight).all() and torch.isfinite(found.bias).all()


def test_examples_with_nothing_to_tell_them_apart_are_an_error(planted):
    embeddings, _, examples = planted
    with pytest.raises(ValueError, match="no example has an image and an answer"):
        ProjectionAlignment(embeddings).solve()
    with pytest.raises(ValueError, match="nothing to align the projection with: the 400 examples"):
        aligned(embeddings, [(tokens, [COMMON]) for tokens, _ in examples])
    with pytest.raises(ValueError, match="nothing to align the projection with: the 400 examples"):
        aligned(embeddings, [(torch.ones(3, TOKEN_SIZE), words) for _, words in examples])
    with pytest.raises(ValueError, match="ridge is 0"):
        ProjectionAlignment(embeddings, ridge=0)
