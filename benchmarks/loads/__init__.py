"""The loads, in the order in which they run."""

from benchmarks.bench import Load
from benchmarks.loads.large import LargeHttp, LargeHttps

LOADS: tuple[Load, ...] = (LargeHttp(), LargeHttps())
