"""``python -m examples.demo [--data DIR] [--output DIR] [--keep]``."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from examples.demo import story
from examples.demo.stage import DemoError, Stage


def main() -> int:
    """Run the demo; 0 when all of it worked, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="The main job of SMP, end to end.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="your own images instead of the photographs")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("demo-output"), help="where the result goes")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder (with its keys) in place")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background ignores it
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with Stage(arguments.output, keep=arguments.keep) as stage:
            story.tell(stage, arguments.data)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"demo: {story.said(error.cmd)} ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; servers, daemon and temporary folder are gone", file=sys.stderr)
        return 130
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
