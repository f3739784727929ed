"""A job as a row of the database: its columns, and which of them are sealed and bound to the others."""

from collections.abc import Sequence
from typing import Any

import msgspec

from smp_proto.control import AnyJobSpec
from smp_proto.errors import IntegrityError
from smpd.jobs.job import Job
from smpd.jobs.seal import StateSeal

# Both groups are associated data of the row's sealed columns, so that a flipped bit in any of them is seen.
_FIXED = ("id", "owner", "priority", "created")
_CHANGING = ("state", "attempt", "delay", "due", "updated", "total_bytes", "done_bytes", "phase")
_PLAIN = (*_FIXED, *_CHANGING)
SELECT = f"SELECT {', '.join(_PLAIN)}, number, token, spec, ending FROM jobs"  # noqa: S608 - the names above
INSERT = f"INSERT INTO jobs ({', '.join(_PLAIN)}, ending, token, spec) VALUES ({'?, ' * len(_PLAIN)}?, ?, ?)"  # noqa: S608
UPDATE = f"UPDATE jobs SET {'=?, '.join(_CHANGING)}=?, ending=? WHERE id=?"  # noqa: S608
NUMBER = len(_PLAIN)  # where the job's number is in a row

# An error's details come from many hands: what msgpack cannot say is named by its type only.
_encode = msgspec.msgpack.Encoder(enc_hook=lambda value: f"<{type(value).__name__}>").encode
_decode = msgspec.msgpack.decode


class JobRows:
    """Makes rows of jobs, and jobs of rows.

    Args:
        seal: seals their specs and their ends.
    """

    def __init__(self, seal: StateSeal) -> None:
        self._seal = seal

    def job(self, values: tuple[Any, ...]) -> Job:
        """Open a row, as :data:`SELECT` gives it.

        Raises:
            IntegrityError: ``corrupt``.
        """
        *plain, number, token, spec, ending = values
        stored = {**dict(zip(_PLAIN, plain, strict=True)), "number": number}
        job_id, changing = plain[0], plain[len(_FIXED) :]
        try:
            stored["spec"] = _decode(self._seal.open(spec, _context("spec", [*plain[: len(_FIXED)], token])))
            stored |= _decode(self._seal.open(ending, _context("ending", [job_id, *changing])))
            return msgspec.convert(stored, Job)
        except (msgspec.MsgspecError, IntegrityError) as error:
            message, hint = f"the record of job {job_id} is damaged", "submit the job again under a new key"
            raise IntegrityError("corrupt", message, hint=hint) from error

    def whole(self, job: Job, spec: AnyJobSpec, token: bytes) -> Sequence[object]:
        """The values for :data:`INSERT`."""
        fixed = [getattr(job, name) for name in _FIXED]
        return [*fixed, *self.changing(job), token, self._seal.seal(_encode(spec), _context("spec", [*fixed, token]))]

    def changing(self, job: Job) -> Sequence[object]:
        """The values of the columns that a move may change, the sealed one last; :data:`UPDATE` wants the id, too."""
        kept = {"error": job.error, "result": job.result, "transfer": job.transfer, "stages": job.stages}
        changing = [getattr(job, name) for name in _CHANGING]
        return [*changing, self._seal.seal(_encode(kept), _context("ending", [job.id, *changing]))]


def _context(kind: str, values: Sequence[object]) -> str:
    """Associated data of a sealed column. SQLite may give 5.0 for 5, and 0.0 for -0.0: here they are one."""
    return f"job {kind} {[value + 0.0 if isinstance(value, int | float) else value for value in values]}"
