"""Runs loads: every contestant once to warm up, then all of them in turn, round by round."""

from collections.abc import Callable, Sequence

from benchmarks.bench import Bench, Contestant, Load
from benchmarks.results import Contested, LoadResult, Sample
from benchmarks.smp import JobFailedError
from smp_proto.errors import SmpError

Say = Callable[[str], None]
# What a contestant may fail with. Anything else is a fault of the bench, and ends it.
TROUBLE = (JobFailedError, SmpError, RuntimeError, TimeoutError)


def run_load(load: Load, bench: Bench, rounds: int, say: Say) -> LoadResult:
    """Run one load.

    A contestant that fails keeps the samples it has, with what went wrong, and takes part no more.
    """
    result = LoadResult(load.name, load.title, load.unit, load.ceiling, load.note)
    with load.open(bench) as entries:
        running: list[tuple[Contestant, Contested]] = []
        for entry in entries:
            if isinstance(entry, Contestant):
                result.contested.append(Contested(entry.name, entry.ends_as))
                running.append((entry, result.contested[-1]))
            else:
                result.contested.append(Contested(entry[0], "", trouble=f"absent: {entry[1]}"))
        for number in range(1 + min(rounds, load.rounds or rounds)):
            for contestant, contested in running:
                if contested.trouble:
                    continue
                try:
                    sample = measured(contestant, bench)
                except TROUBLE as error:
                    contested.trouble = f"failed: {str(error) or type(error).__name__}"
                    say(f"  {contestant.name}: {contested.trouble}")
                    continue
                if number:
                    contested.samples.append(sample)
            say(f"  round {number}" if number else "  warm")
    return result


def measured(contestant: Contestant, bench: Bench) -> Sample:
    """One sample, with what the server's log says of it."""
    bench.store.traffic()
    sample = contestant.act()
    sample.sent, sample.requests = bench.store.traffic(at_least=sample.bytes)
    return sample


def select(loads: Sequence[Load], only: str) -> list[Load]:
    """The loads whose names are listed with commas between; all for an empty list.

    Raises:
        ValueError: there is no load of such a name.
    """
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    known = {load.name: load for load in loads}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(f"no load is called {', '.join(missing)}; there are {', '.join(known)}")
    return [known[name] for name in wanted] if wanted else list(loads)
