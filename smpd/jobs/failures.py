"""What becomes of a failed attempt: which error is kept, and how long the next one waits. Pure."""

import random
from typing import NamedTuple

from smp_proto.errors import IntegrityError, SmpError

RETRY_AFTER_MAX_S = 3_600.0  # a server may ask for patience, not for ever


class Pace(NamedTuple):
    """How many jobs run at once, and how failed ones are tried again: full jitter below ``base · 2^(attempt - 1)``."""

    running_max: int
    attempts: int
    backoff_base_s: float
    backoff_max_s: float


def backoff_s(attempt: int, error: SmpError, pace: Pace, rng: random.Random) -> float:
    """Seconds to wait: full jitter, and not less than the server asked for."""
    ceiling = min(pace.backoff_max_s, pace.backoff_base_s * 2.0 ** min(attempt - 1, 32))
    asked = error.details.get("retry_after", 0.0)
    patience = float(asked) if isinstance(asked, int | float) and asked > 0 else 0.0
    return max(rng.uniform(0.0, ceiling), min(patience, RETRY_AFTER_MAX_S))


def cause(job_id: str, failure: Exception) -> tuple[SmpError, bool]:
    """The error to keep, and whether all of it was expected.

    Of several at once it is the gravest; what no SMP error explains is ``internal``.
    """
    causes = _leaves(failure)
    known = [cause for cause in causes if isinstance(cause, SmpError)]
    if known:
        gravest = min(known, key=lambda cause: (not isinstance(cause, IntegrityError), cause.retryable))
        return gravest, len(known) == len(causes)
    # The text of a foreign exception may hold a name out of the data, so only its type is kept.
    name = type(causes[0]).__name__
    hint = "the daemon's log has the details"
    return SmpError("internal", f"job {job_id} met an unexpected {name}", hint=hint), False


def _leaves(failure: Exception) -> list[Exception]:
    """The exceptions inside (nested) exception groups."""
    if not isinstance(failure, ExceptionGroup):
        return [failure]
    return [leaf for part in failure.exceptions for leaf in _leaves(part)]
