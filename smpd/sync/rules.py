"""What a sync wants, where its results go, and how long a failure waits: pure functions of its spec."""

import hashlib
import random
import re

from smp_proto.control import GetSpec, RunSpec, SyncSpec
from smp_proto.errors import UsageError
from smpd.sync.patterns import pattern
from smpd.vault.remotes import is_prefix, parse_location

TRIES = 5  # jobs for one object version before it is left to a person
EVERY_MIN_S, EVERY_MAX_S = 1.0, 86_400.0
IN_FLIGHT_MAX = 256
RETRY_BASE_S = 60.0
RETRY_MAX_S = 3600.0
_SUFFIX = ".smp"
_QUEUE = re.compile(r"https?://[\x21-\x7e]{1,1000}")


class Rules:
    """A sync's spec, checked.

    Raises:
        UsageError: ``bad_request`` or ``bad_name``, naming what is wrong.
    """

    def __init__(self, spec: SyncSpec) -> None:
        self.spec = spec
        self.remote, self.prefix = parse_location(spec.source, prefix=True)
        self._include = [pattern(each) for each in spec.include]
        self._exclude = [pattern(each) for each in spec.exclude]
        if not EVERY_MIN_S <= spec.every_s <= EVERY_MAX_S:
            raise UsageError("bad_request", "a sync lists every second to every day", hint="for example: --every 30s")
        if not 1 <= spec.max_in_flight <= IN_FLIGHT_MAX:
            raise UsageError(
                "bad_request", f"a sync has 1 to {IN_FLIGHT_MAX} jobs at once", hint="change --max-in-flight"
            )
        if spec.target and not spec.processor:
            raise UsageError("bad_request", "only results of a processor can go elsewhere", hint="add --run PROCESSOR")
        if spec.target:
            remote, path = parse_location(spec.target, prefix=True)
            if not is_prefix(path):
                raise UsageError("bad_request", f"{spec.target} is no prefix", hint="end it with a slash")
            if remote == self.remote and (path.startswith(self.prefix) or not self.prefix):
                hint = "choose another prefix or remote for --to"
                raise UsageError("bad_request", "the sync would find its own results", hint=hint)

        if spec.events and not _QUEUE.fullmatch(spec.events):
            hint = "for example: --events https://sqs.eu-central-1.amazonaws.com/123456789012/NAME"
            raise UsageError("bad_request", "--events takes the URL of a queue", hint=hint)
        self._check_move()

    def _check_move(self) -> None:
        spec = self.spec
        if (spec.after == "move") != bool(spec.moved_to):
            raise UsageError("bad_request", "to move an object takes a prefix", hint="for example: --after move:done/")
        if not spec.moved_to:
            return
        prefix = parse_location(f"{self.remote}:{spec.moved_to}", prefix=True).path
        if not is_prefix(prefix):
            raise UsageError("bad_request", f"{prefix} is no prefix", hint="end it with a slash")
        if prefix.startswith(self.prefix):
            hint = "choose a prefix outside of the one that is watched"
            raise UsageError("bad_request", "the sync would find again what it moved", hint=hint)
        results = spec.target.removeprefix(f"{self.remote}:")
        if results != spec.target and (results.startswith(prefix) or prefix.startswith(results)):
            raise UsageError("bad_request", "objects would be moved among the results", hint="choose another prefix")

    def moved_to(self, path: str, pin: str) -> tuple[str, str]:
        """Where an object is moved to, and where to if something is there already: a name of this version's own."""
        plain = self.spec.moved_to + self._inside(path)
        folder, slash, name = plain.rpartition("/")
        stem, dot, kind = name.rpartition(".") if "." in name[1:] else (name, "", "")
        own = hashlib.sha256(pin.encode()).hexdigest()[:12]
        return plain, f"{folder}{slash}{stem}.{own}{dot}{kind}"

    def _inside(self, path: str) -> str:
        """The path from the last slash of the prefix on, so that no two objects have one."""
        return path[self.prefix.rfind("/") + 1 :]

    def wants(self, path: str) -> bool:
        """Whether an object of the listing is one to work on."""
        inside = path.removeprefix(self.prefix)
        if any(each(inside) for each in self._exclude):
            return False
        return not self._include or any(each(inside) for each in self._include)

    def job(self, path: str, pin: str, *, sealed: bool) -> GetSpec | RunSpec:
        """What is to be done with one version of an object; no two objects have one name for their results.

        Args:
            sealed: whether what lies there is sealed, and so has the suffix that is meant for it.

        Raises:
            UsageError: ``bad_name``; a step of its path is empty, which is one in a bucket, and none in a folder.
        """
        spec, source = self.spec, f"{self.remote}:{path}"
        if not spec.processor:
            return GetSpec(source, pin=pin)
        target = ""
        if spec.target:
            inside = self._inside(path)
            if "" in inside.split("/"):
                hint = "rename it, or leave it out with --exclude"
                raise UsageError("bad_name", f"no result can be named after {source}: it has an empty step", hint=hint)
            target = spec.target + inside + ("" if sealed else _SUFFIX)
        return RunSpec(source, spec.processor, spec.params, target, spec.recipients, pin=pin)


def retry_delay(tries: int, rng: random.Random) -> float:
    """Seconds until an object that failed ``tries`` times is tried again: exponential, half of it jitter."""
    ceiling = min(RETRY_MAX_S, RETRY_BASE_S * 2.0 ** min(tries - 1, 16))
    return ceiling / 2 + rng.uniform(0.0, ceiling / 2)
