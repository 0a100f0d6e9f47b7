"""A whole run, for all tests to look at, go on from, and draw with."""

import pytest

from tests.integration.runs import compiled_once, losses, train


@pytest.fixture(autouse=True)
def _compiled_once():
    with compiled_once():
        yield


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Six updates in one go."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    with compiled_once():
        assert train(run_dir, "--config.train.max_steps=6", "--config.train.validate_every=6") == 0
    assert sorted(losses(run_dir)) == [1, 2, 3, 4, 5, 6]
    return run_dir
