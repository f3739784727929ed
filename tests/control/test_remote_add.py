"""What brings a remote's secret is not kept."""

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from smp_proto.aio import Channel, Exchange, encode
from smp_proto.control import RemoteAdd, S3Config, S3Secret
from smp_proto.errors import StateError
from smpd.verbs.remotes import remote_add


@pytest.mark.parametrize("refused", [False, True])
async def test_its_request_is_overwritten(refused: bool) -> None:
    """Whether the remote is kept or not, and not before it was: what is kept holds the secret."""
    near, far = (Channel(each) for each in socket.socketpair())
    request = RemoteAdd(
        "lake", S3Config("bucket"), secret=S3Secret("".join(["access", "key"]), "".join(["sec", "ret"]))
    )
    body, kept = encode(request), list[bytes]()

    async def record(*_arguments: Any, **_fields: Any) -> None:
        assert b"secret" in body

    def add(_name: str, _config: Any, *, mode: str, secret: S3Secret) -> None:
        kept.append(secret.secret_key.encode())
        if refused:
            raise StateError("exists", "there is a remote lake already")

    daemon = cast("Any", SimpleNamespace(record=record, remotes=SimpleNamespace(add=add)))
    try:
        await remote_add(daemon, cast("Any", None), request, Exchange(near, 1, request=body))
    except StateError:
        assert refused
    finally:
        near.close()
        far.close()
    assert kept == [b"secret"]
    assert body == bytes(len(body))
