"""`lorica train RECIPE` in this process; its log has the clock and the memory at every event."""

import sys
import time
from pathlib import Path
from typing import Any

from lorica import cli
from lorica.training.run import Run

STATUS = Path("/proc/self/status")


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def main() -> None:
    plain = Run.log

    def log(run: Run, event: str, **facts: Any) -> None:
        clock = {"process_seconds": time.process_time(), "wall_seconds": time.perf_counter()}
        plain(run, event, **facts, **clock, resident=status("VmRSS"), peak=status("VmHWM"))

    Run.log = log  # type: ignore[method-assign]
    sys.argv = ["lorica", "train", *sys.argv[1:], "--json"]
    cli.main()


if __name__ == "__main__":
    main()
