"""R12: each parser a million times under atheris, two parsers at a time; the short form mutates seeds in this process."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
from fuzz.mutate import inputs
from fuzz.targets import TARGETS, Target

from torture.harness import Experiment, Trial, Trials, replaced

RUNS = 1_000_000
SHORT_RUNS = 150
_AT_A_TIME = 2
_LIMIT_S = 3600.0
_TESTS = Path(__file__).parents[1]


def _run(trials: Trials) -> None:
    if trials.count < len(TARGETS):  # some trials of it only: the short form
        for trial in trials:
            with trial:
                _mutate(TARGETS[trial.number], trial)
        return
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        doing = [
            (trial, threads.submit(_fuzz, TARGETS[trial.number], trial.rng.randrange(1, 1 << 31))) for trial in trials
        ]
        for trial, done in doing:
            with trial:
                _note(trials, trial, done)


def _mutate(target: Target, trial: Trial) -> None:
    run = target.checked()
    for data in inputs(trial.rng, target.seeds(), SHORT_RUNS):
        run(data)


def _note(trials: Trials, trial: Trial, done: "Future[tuple[int, int, int]]") -> None:
    runs, per_s, peak_mb = done.result()
    assert runs >= RUNS, f"only {runs} runs"
    trials.figures[TARGETS[trial.number].name] = f"{per_s:,}/s, {peak_mb} MiB"


def _fuzz(target: Target, seed: int) -> tuple[int, int, int]:
    """Runs done, runs a second, and peak memory in MiB, which atheris ends a process for above its limit."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", target.name, f"-runs={RUNS}", f"-seed={seed}"],
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_LIMIT_S,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{target.name} with -seed={seed}: {said[-1500:]}"
    figures = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", said)}
    seconds = int(re.findall(r"Done \d+ runs in (\d+) second", said)[0])
    return (
        figures["number_of_executed_units"],
        figures["number_of_executed_units"] // max(seconds, 1),
        figures["peak_rss_mb"],
    )


def _missing() -> str:
    return "" if importlib.util.find_spec("atheris") else "atheris is not installed for this Python"


# ── planted ──


@contextlib.contextmanager
def _nesting_breaks_out() -> Iterator[None]:
    """A decoder of messages that lets a RecursionError out."""
    from smp_proto import channel

    def decode(body: Any, kind: Any) -> Any:
        try:
            return msgspec.msgpack.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise channel.DaemonError("protocol", "no message") from error

    with replaced(channel, "decode", decode):
        yield


@contextlib.contextmanager
def _short_fields_break_out() -> Iterator[None]:
    """A reader of SFTP attributes that lets a struct.error out."""
    from smpd.fetch import sftp_wire

    def attributes_of(reply: Any) -> object:
        return sftp_wire._U64.unpack_from(sftp_wire.expect(reply, sftp_wire.ATTRS), 4)

    with replaced(sftp_wire, "attributes_of", attributes_of):
        yield


@contextlib.contextmanager
def _odd_heads_are_taken() -> Iterator[None]:
    """A head expression that takes what h11 reads otherwise: a field that comes twice."""
    from smpd.fetch import exchange

    pattern = exchange._HEAD.pattern.replace(rb"[ -~]*+\r\n)++", rb"[\t -~]*+\r\n)++")

    def parse_head(data: bytes) -> Any:
        found = re.match(pattern, data)
        if not found:
            return None
        fields = [line.partition(":") for line in found[2].decode().split("\r\n")[:-1]]
        headers = {name.lower(): value.strip(" ") for name, _, value in fields}
        return exchange.Answer(int(found[1]), headers), found.end()

    with replaced(exchange, "parse_head", parse_head):
        yield


@contextlib.contextmanager
def _frames_without_a_cap() -> Iterator[None]:
    """A frame decoder that buffers whatever length is announced."""
    from smp_proto import wire

    def check(length: int, stream: int, kind: int, fds: int) -> Any:
        return wire.FrameType(kind)

    with replaced(wire, "_check_header", check):
        yield


@contextlib.contextmanager
def _long_numbers_break_out() -> Iterator[None]:
    """A configuration whose reader knows the errors of TOML only, and not that of a number with 5000 digits."""
    import tomllib

    real = tomllib.load

    def load(file: Any) -> Any:
        try:
            return real(file)
        except tomllib.TOMLDecodeError:
            raise
        except ValueError:
            raise KeyError("number") from None

    with patch("tomllib.load", load):
        yield


EXPERIMENT = Experiment(
    id="R12",
    title=f"fuzz of {len(TARGETS)} parsers, {RUNS:,} runs of each under atheris",
    passes="no crash, no unexpected error, bounded memory",
    trials=len(TARGETS),
    short=len(TARGETS) - 1,
    run=_run,
    plants={
        "nesting breaks out": _nesting_breaks_out,
        "short fields break out": _short_fields_break_out,
        "odd heads are taken": _odd_heads_are_taken,
        "frames without a cap": _frames_without_a_cap,
        "long numbers break out": _long_numbers_break_out,
    },
    planted_trials=5,
    missing=_missing,
)
