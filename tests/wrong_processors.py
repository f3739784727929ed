"""Processors that go wrong, copied into a distribution of their own; none of their results may be delivered."""

import ctypes
import time

import msgspec
import torch

from smpd.processors import Output, Refused, processor


class Number(msgspec.Struct, forbid_unknown_fields=True):
    width: int = 1


@processor("wrong.none", params=Number)
def none(item, ctx):
    """Nothing is wrong with this one."""
    return Output(f"{item.name}.out", bytes(item.data.tolist()[:9]))


@processor("wrong.raises")
def raises(item, ctx):
    raise ValueError(f"cannot read {item.name}: {bytes(item.data[:64].tolist())!r}")


@processor("wrong.refuses")
def refuses(item, ctx):
    raise Refused("there is no lung in this")


@processor("wrong.late")
def late(item, ctx):
    yield Output("first", bytes(item.data.tolist()))
    raise ValueError(item.name)


@processor("wrong.hangs")
def hangs(item, ctx):
    yield Output("first", bytes(item.data.tolist()))
    time.sleep(3600)


@processor("wrong.spins")
def spins(item, ctx):
    while True:
        pass


@processor("wrong.name")
def name(item, ctx):
    return Output("../../etc/cron.d/smp", b"* * * * * root true")


@processor("wrong.twice")
def twice(item, ctx):
    return [Output("one", b"1"), Output("one", b"2")]


@processor("wrong.folds")
def folds(item, ctx):
    return [Output("one", b"1"), Output("ONE", b"2")]


@processor("wrong.busy")
def busy(item, ctx):
    yield Output("one", b"1")
    yield Output("ONE", b"2")
    time.sleep(1.5)


@processor("wrong.below")
def below(item, ctx):
    return [Output("one", b"1"), Output("one/two", b"2")]


@processor("wrong.separator")
def separator(item, ctx):
    return Output("one\u2028two", b"1")


@processor("wrong.type")
def type_(item, ctx):
    return {"pixels": item.data}


@processor("wrong.data")
def data(item, ctx):
    return Output("one", {"pixels": item.data})


@processor("wrong.attributes")
def attributes(item, ctx):
    return Output("one", b"1", attributes={"nested": {"none": None}})


@processor("wrong.crashes")
def crashes(item, ctx):
    ctypes.string_at(8)


@processor("wrong.memory")
def memory(item, ctx):
    held = []
    while True:
        held.append(torch.ones(64 << 20, dtype=torch.uint8))


leaked = []


@processor("wrong.leaks")
def leaks(item, ctx):
    leaked.append(torch.ones(8 << 20, dtype=torch.uint8))
    return Output(f"{item.name}.out", b"1")


@processor("wrong.text", accepts="text/plain")
def text(item, ctx):
    return Output("one", b"1")
