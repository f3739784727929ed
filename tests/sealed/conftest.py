"""Identities and small objects, made once."""

import pytest
from sealed.forge import identity

from smp_proto.sealed.keys import Identity


@pytest.fixture(scope="session")
def alice() -> Identity:
    return identity("alice")


@pytest.fixture(scope="session")
def bob() -> Identity:
    return identity("bob")


@pytest.fixture(scope="session")
def carol() -> Identity:
    return identity("carol")
