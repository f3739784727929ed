"""What an experiment is, and how its trials are counted, seeded and judged."""

import contextlib
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

Plant = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Experiment:
    """One row of the table.

    Args:
        id: ``R1`` to ``R21``.
        title: what is done to it, in a few words.
        passes: what has to hold, in a few words.
        trials: how many, at full count.
        short: how many in ``make test``.
        run: does the trials it is given, and may keep figures in :attr:`Trials.figures`. It must use all of them.
        plants: faults by name. Each is a context manager that puts the fault in; at least one trial must fail then.
        planted_trials: how many trials are enough to see a planted fault.
        missing: says why it cannot be run on this machine, or nothing.
    """

    id: str
    title: str
    passes: str
    trials: int
    short: int
    run: "Callable[[Trials], None]"
    plants: Mapping[str, Plant] = field(default_factory=dict)
    planted_trials: int = 5
    missing: Callable[[], str] = str


@dataclass(frozen=True)
class Failure:
    """A trial that failed; number -1 is what happened outside of any."""

    trial: int
    what: str
    where: str


@dataclass
class Trial:
    """One try: a context manager that keeps what was raised in it. Its ``rng`` depends on seed and number alone."""

    number: int
    rng: random.Random
    folder: Path
    failures: list[Failure]

    def __enter__(self) -> "Trial":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures.append(explain(self.number, error))
        return True


class Trials:
    """The trials of one run of an experiment: iterate over them, and do each inside ``with trial:``.

    Args:
        experiment: whose.
        count: how many.
        seed: what they are drawn from.
        folder: an empty folder, for what all of them share and for the folder of each.
        only: the one trial to do, to see a failure again.
    """

    def __init__(self, experiment: Experiment, count: int, seed: int, folder: Path, only: int | None = None) -> None:
        self.experiment = experiment
        self.count = count
        self.seed = seed
        self.folder = folder
        self.failures: list[Failure] = []
        self.figures: dict[str, Any] = {}  # measured on the way, for the report
        self.tried = 0
        self._numbers = list(range(count)) if only is None else [only]

    def rng(self, name: object) -> random.Random:
        """Randomness that depends on the seed and a name alone."""
        return random.Random(f"{self.seed}/{self.experiment.id}/{name}")

    def __len__(self) -> int:
        """How many there are to do."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[Trial]:
        """The trials, in order."""
        for number in self._numbers:
            self.tried += 1
            yield Trial(number, self.rng(number), self.folder / f"trial-{number}", self.failures)


@dataclass
class Row:
    """How an experiment went; ``skipped`` says why it was not run."""

    id: str
    title: str
    passes: str
    seed: int
    wanted: int = 0
    tried: int = 0
    seconds: float = 0.0
    skipped: str = ""
    failures: list[Failure] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """How many trials failed, or broke off."""
        return len({failure.trial for failure in self.failures})

    @property
    def good(self) -> bool:
        """Whether it was run, whole, and held."""
        return not self.skipped and not self.failures and self.tried == self.wanted > 0


def perform(experiment: Experiment, count: int, seed: int, folder: Path, only: int | None = None) -> Row:
    """Run an experiment; whatever it raises is in the row."""
    row = Row(experiment.id, experiment.title, experiment.passes, seed, skipped=experiment.missing())
    if row.skipped:
        return row
    trials = Trials(experiment, count, seed, folder, only)
    row.wanted = len(trials)
    begun = time.monotonic()
    try:
        experiment.run(trials)
    except Exception as error:  # noqa: BLE001 - a set-up that fails is a result too
        trials.failures.append(explain(-1, error))
    row.seconds = time.monotonic() - begun
    row.tried, row.failures, row.figures = trials.tried, trials.failures, trials.figures
    if row.tried != row.wanted and not row.failures:
        row.failures.append(Failure(-1, f"only {row.tried} of {row.wanted} trials were done", ""))
    return row


def explain(number: int, error: BaseException) -> Failure:
    """What was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(each.filename).name}:{each.lineno}" for each in reversed(frames[-6:]))
    return Failure(number, f"{type(error).__name__}: {error}"[:2000], where)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """For a block, another value for an attribute: how a fault is planted in this process."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
