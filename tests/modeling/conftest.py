"""Checkpoints that several tests of models compose from."""

import pytest

from tests.tiny import compose, save_base_models
from vistok import save_trained_weights


@pytest.fixture(scope="session")
def base_models(tmp_path_factory):
    return save_base_models(tmp_path_factory.mktemp("base"))


@pytest.fixture
def trained(base_models, tmp_path):
    """A model of which the resampler and the projector are trained, and its folder."""
    model = compose(base_models)
    model.requires_grad_(False)
    model.model.resampler.requires_grad_(True)
    model.model.projector.requires_grad_(True)
    folder = tmp_path / "trained"
    save_trained_weights(model, folder)
    return model, folder
