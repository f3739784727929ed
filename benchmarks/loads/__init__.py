"""The loads, in the order in which they run."""

from benchmarks.bench import Load
from benchmarks.loads.far import Far, FarJobs, FarObjects
from benchmarks.loads.jobs import ManyJobs
from benchmarks.loads.large import LargeHttp, LargeHttps
from benchmarks.loads.latency import Ready, RoundTrip
from benchmarks.loads.put import Put
from benchmarks.loads.rest import Idle, Memory
from benchmarks.loads.resume import Resume
from benchmarks.loads.sftp import Sftp
from benchmarks.loads.small import MANY, ManyEntries
from benchmarks.loads.spool import Spool

LOADS: tuple[Load, ...] = (
    LargeHttp(),
    LargeHttps(),
    Sftp(),
    *MANY,
    ManyEntries(),
    Put(),
    Spool(),
    Resume(),
    ManyJobs(),
    Far(),
    FarObjects(),
    FarJobs(),
    Ready(),
    RoundTrip(),
    Idle(),
    Memory(),
)
