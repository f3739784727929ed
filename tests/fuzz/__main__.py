"""One target under atheris: ``python -m fuzz TARGET -runs=N -seed=S`` and other options of libFuzzer.

New inputs of a run are kept in a temporary folder only; one that broke something is written to ``build/fuzz``.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

from fuzz.targets import BY_NAME, CORPUS

MEMORY_MB = 1024
OUT = Path(__file__).resolve().parents[2] / "build" / "fuzz"


def main() -> None:
    """Run until libFuzzer ends the process."""
    if len(sys.argv) < 2 or sys.argv[1] not in BY_NAME:
        sys.exit(f"usage: fuzz TARGET [-runs=N] [-seed=S]; the targets are {', '.join(BY_NAME)}")
    target = BY_NAME[sys.argv[1]]
    with atheris.instrument_imports(include=["smp_proto", "smpd", "smpctl"]):
        run = target.checked()
    OUT.mkdir(parents=True, exist_ok=True)
    grown = tempfile.mkdtemp(prefix="smp-fuzz-")
    options = [
        f"-rss_limit_mb={MEMORY_MB}",
        "-timeout=30",
        "-print_final_stats=1",
        f"-artifact_prefix={OUT}/{target.name}-",
    ]
    atheris.Setup([sys.argv[0], *options, *sys.argv[2:], grown, str(CORPUS / target.name)], run)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(grown, ignore_errors=True)


if __name__ == "__main__":
    main()
