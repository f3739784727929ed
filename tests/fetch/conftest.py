"""Servers that the tests of the fetch process share."""

from collections.abc import Iterator

import pytest
from servers import Served, moto_s3, rclone_s3, rclone_sftp, sshd


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with rclone_s3(tmp_path_factory.mktemp("rclone-s3")) as served:
        yield served


@pytest.fixture(scope="session")
def moto() -> Iterator[Served]:
    with moto_s3() as served:
        yield served


@pytest.fixture(scope="session")
def go_sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with rclone_sftp(tmp_path_factory.mktemp("rclone-sftp"), tmp_path_factory.mktemp("keys")) as served:
        yield served


@pytest.fixture(scope="session")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with sshd(tmp_path_factory.mktemp("openssh"), tmp_path_factory.mktemp("keys")) as served:
        yield served
