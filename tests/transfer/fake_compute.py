"""A compute process that keeps to the protocol or breaks it, as the processor's name says: ``fake_compute.py FD``."""

import mmap
import os
import signal
import socket
import sys
import threading
from typing import cast

import anyio

from smp_proto.aio import Channel, Exchange, close_all, decode
from smp_proto.control import ProcessorInfo
from smp_proto.errors import IntegrityError, ProcessorError, ResourceError, UsageError
from smp_proto.serving import serve
from smpd.links.computing import (
    PROCESSORS_BYTES_MAX,
    AnyRequest,
    AnyToCompute,
    Check,
    Chunk,
    Done,
    Finish,
    Freed,
    Objects,
    OutputBegin,
    OutputChunk,
    OutputEnd,
    OutputFreed,
    Ready,
    Request,
    Run,
    Setup,
    ToCompute,
)
from smpd.links.ring import Ring

FLOOD = 20_000
rings: list[Ring] = []
kept: list[bytearray] = []
exchange_job: dict[int, bytes] = {}  # of "checks": eight bytes that its plaintext repeats


async def handle(body: bytes, fds: list[int], exchange: Exchange) -> object:
    request = decode(body, cast("type[Request]", AnyRequest))
    if isinstance(request, Setup):
        rings.append(Ring(fds[0], request.slots, request.slot_bytes))
        rings.append(Ring(fds[1], request.result_slots, request.result_slot_bytes))
        if os.environ.get("FAKE_DEVICE") == "full":
            raise ResourceError("no_memory", "device cuda:0 cannot be opened: all of its memory is in use")
        ready = Ready("cpu", "fake", "0", False, {}, [])
        match os.environ.get("FAKE_DEVICE"):
            case "walls":
                ready.sandbox = {"seccomp": "x" * 1001}
            case "more walls":
                ready.sandbox = {str(number): "on" for number in range(17)}
            case "notes":
                ready.notes = ["x"] * 17
            case "a note":
                ready.notes = ["x" * 1001]
            case "processors":
                ready.processors = [ProcessorInfo("x", "", "", "")] * 257
            case "parameters":
                ready.processors = [ProcessorInfo("x", "", "", "", params={"x": "x" * PROCESSORS_BYTES_MAX})]
        return ready
    close_all(fds)
    if isinstance(request, Check):
        return await check(request.processor)
    assert isinstance(request, Run)
    return await run(request, exchange)


async def check(act: str) -> object:
    match act:
        case "refuses":
            raise UsageError("bad_parameter", "it has no parameter 'widht'\x1b[2J", details={"k": "v"})
        case "accuses":
            raise IntegrityError("corrupt", "the sender has forged it")
        case "dies":
            os._exit(1)
        case "hangs":
            await anyio.sleep_forever()
        case "nonsense":
            return 5
    return None


async def run(request: Run, exchange: Exchange) -> Done:
    act = request.processor
    exchange_job[exchange.stream] = request.job.encode()
    done = Done(1, 1, "x" * 1_000_000 if act == "boasts" else "cpu", 0, 0.0)
    while True:
        message, _ = await exchange.receive(cast("type[ToCompute]", AnyToCompute))
        if isinstance(message, Finish):
            break
        if isinstance(message, Objects):
            continue
        assert isinstance(message, Chunk)
        if await misbehave(act, exchange, message):
            return done
        await exchange.send(Freed(message.slot))
    if act == "nothing":
        return done
    if act == "leaks":
        kept.append(bytearray(b"x") * (8 << 20))
    if act == "keeps":
        kept.append(bytearray(b"x") * (160 << 20))
    await exchange.send(OutputBegin("result.bin", "application/octet-stream"))
    if act == "begin twice":
        await exchange.send(OutputBegin("other.bin", "application/octet-stream"))
    with rings[1].slot(0) as slot:
        slot[:5] = b"hello"
    length = rings[1].slot_bytes + 1 if act == "too long" else 5
    await exchange.send(OutputChunk(99 if act == "outside" else 0, length))
    if act == "fails late":
        with rings[1].slot(1) as slot:
            slot[:5] = b"never"
        raise ProcessorError("processor_failed", "line 8")
    while not isinstance((await exchange.receive(cast("type[ToCompute]", AnyToCompute)))[0], OutputFreed):
        pass
    if act != "unended":
        await exchange.send(OutputEnd())
    return done


async def misbehave(act: str, exchange: Exchange, chunk: Chunk) -> bool:
    """Do what the name says at the first chunk; True to be done at once."""
    match act:
        case "early":
            return True
        case "freed twice":
            await exchange.send(Freed(chunk.slot))
        case "freed unasked":
            await exchange.send(Freed(1000))
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            await anyio.sleep_forever()
        case "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "checks":
            with rings[0].slot(chunk.slot) as slot:
                if bytes(slot[: chunk.length]) != exchange_job[exchange.stream] * (chunk.length // 8):
                    raise ProcessorError("processor_failed", "these are not its bytes")
        case "fails":
            raise ProcessorError("processor_failed", "line 7")
        case "accuses":
            raise IntegrityError("corrupt", "the sender has forged it")
        case "shouts":
            raise ProcessorError("processor_failed", "\x1b]0;mine\x07" + "a" * 100_000, details={"k": "v" * 100_000})
        case "hoards":
            held = []
            while len(held) < 100:
                held.append(bytearray(b"x") * (32 << 20))
                await anyio.sleep(0.02)
        case "hides":
            held = []
            while len(held) < 100:
                held.append(mmap.mmap(-1, 32 << 20))
                held[-1][:] = b"x" * (32 << 20)
                await anyio.sleep(0.02)
        case "multiplies":
            for _ in range(4000):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            await anyio.sleep_forever()
        case "floods":
            for _ in range(FLOOD):
                await exchange.send(OutputBegin("x", "y"))
        case "nonsense":
            await exchange.send({"m": "no such message"})
    return False


async def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        await serve(channel, handle, unexpected=lambda error: None)
    finally:
        channel.close()


if __name__ == "__main__":
    anyio.run(main)
