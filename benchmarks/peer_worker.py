"""A process in which the peers that are Python libraries run, so that their imports are not what is measured.

It reads one JSON object a line, ``{"act": name, …}``, and answers each with ``{"seconds", "cpu_s"}`` or ``{"error"}``.
"""

import functools
import json
import os
import resource
import sys
import time
from typing import Any

_BLOCK_BYTES = 1 << 20


@functools.cache
def _tink(keyset: str) -> Any:
    import tink
    from tink import cleartext_keyset_handle, streaming_aead

    streaming_aead.register()
    handle = cleartext_keyset_handle.read(tink.JsonKeysetReader(keyset))
    return handle.primitive(streaming_aead.StreamingAead)


def tink_open(path: str, keyset: str) -> None:
    """Tink's streaming AEAD, AES256-GCM-HKDF with segments of 1 MiB: the construction of our own payload."""
    with open(path, "rb") as file, _tink(keyset).new_decrypting_stream(file, b"") as plain:
        while plain.read(_BLOCK_BYTES):
            pass


def age_open(path: str, identity: str) -> None:
    """age (X25519, ChaCha20-Poly1305), by pyrage, which is the Rust implementation."""
    import pyrage

    with open(path, "rb") as file, open(os.devnull, "wb") as plain:
        pyrage.decrypt_io(file, plain, [pyrage.x25519.Identity.from_str(identity)])


def tensorizer_open(url: str, key: str, device: str = "cpu") -> None:
    """tensorizer with encryption (XSalsa20-Poly1305), over HTTP, to tensors on a device."""
    from tensorizer import DecryptionParams, TensorDeserializer

    with TensorDeserializer(url, device=device, encryption=DecryptionParams.from_key(bytes.fromhex(key))) as tensors:
        count = sum(tensor.numel() for tensor in tensors.values())
        if device != "cpu":
            import torch

            torch.cuda.synchronize()
    assert count


def alone_open(**arguments: Any) -> None:
    """What SMP does with one object, without SMP."""
    from benchmarks.work_alone import work_alone

    work_alone(**arguments)


def streamer_open(url: str, names: int, device: str) -> None:
    """The Run:ai model streamer, from S3 to tensors, in the clear: it knows no encryption."""
    import torch
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(url)
        found = [tensor.to(device) for _, tensor in streamer.get_tensors()]
    if device != "cpu":
        torch.cuda.synchronize()
    assert len(found) == names


ACTS = {each.__name__: each for each in (alone_open, tink_open, age_open, tensorizer_open, streamer_open)}


def _spent() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    for line in sys.stdin:
        request = json.loads(line)
        act = ACTS[request.pop("act")]
        cpu, started = _spent(), time.perf_counter()
        try:
            act(**request)
            answer: dict[str, Any] = {"seconds": time.perf_counter() - started, "cpu_s": _spent() - cpu}
        except Exception as error:  # noqa: BLE001 - a library may raise anything, and the bench is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
