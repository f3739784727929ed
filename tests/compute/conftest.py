"""Plugins for the tests: a distribution on a path of its own, as an installer would leave it."""

import pytest
from compute.harness import close_shared, install_hostile


@pytest.fixture(scope="session")
def plugins(tmp_path_factory):
    """A folder with the distribution ``smp-hostile``, to go on PYTHONPATH."""
    folder = tmp_path_factory.mktemp("plugins")
    install_hostile(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _shared_processes():
    yield
    close_shared()


@pytest.fixture
def no_descriptor_is_left() -> None:
    """Overridden: the first test that needs a process starts one that later ones share."""
