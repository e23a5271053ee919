"""What a side costs: a short run alone, in a process of its own (`measure_cost`).

Only there is the peak of the memory that of the run, and only there does nothing else compute.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

from lorica import strict_json
from lorica.compare.sides import Side
from lorica.errors import LoricaError
from lorica.formats import commit

SAMPLES = 20
"""Of what else runs."""
STEPS = 20
"""Steps of the run; the first third warms up."""


def others_running() -> float:
    """How many threads of other programs are running, on average over a second; 0: not known.

    The load average is that of the last minutes, in which this machine may have done anything.
    """
    path, counts = Path("/proc/loadavg"), list[int]()
    try:
        for _ in range(SAMPLES):
            counts.append(int(path.read_text().split()[3].partition("/")[0]))
            time.sleep(1 / SAMPLES)
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(statistics.mean(counts) - 1, 0.0)  # this one reads


def measure_cost(side: Side, folder: Path) -> dict[str, Any]:
    """The record of a side's cost. folder: where the run may lie while it is measured."""
    settings = {**side.settings(), "learning_rate": side.centre}
    settings["data"] = {**settings["data"], "validation": 0.0}
    for key in ("eval_steps", "early_stopping_patience"):
        settings.pop(key, None)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=commit.STAGING) as place,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        settings["output"] = str(Path(place) / "run")
        command = [sys.executable, "-P", "-m", __name__, json.dumps(settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(command, text=True, **pipes) as process:
            try:
                assert process.stdout is not None
                lines = process.stdout.read().splitlines()
            except BaseException:
                process.kill()
                raise
        if process.returncode or not lines:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it ended without a result"])[-1]
            return {"error": f"the run that measures the cost failed: {last}"}
    return strict_json.parse(lines[-1])


def main() -> None:
    """Train the settings of the first argument for STEPS steps, and print what they cost.

    When the process that started this one ends, stdin does, and so does this one.
    """
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        print(json.dumps(_cost(json.loads(sys.argv[1]))))
    except LoricaError as error:
        print(json.dumps({"error": f"the run that measures the cost failed: {error.summary}"}))


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be in the way as this process ends
        pass
    os._exit(1)


def _cost(settings: dict[str, Any]) -> dict[str, Any]:
    from lorica.core.peak_memory import peak_memory
    from lorica.training.config import read
    from lorica.training.placement import choose_placement
    from lorica.training.run import read_events
    from lorica.training.train import train

    config = read(None, settings)
    result = train(config, until=STEPS, show=False)
    steps = [event for event in read_events(result.folder) if event["event"] == "step"]
    tokens = [steps[0]["tokens"]]
    tokens += [b["tokens"] - a["tokens"] for a, b in pairwise(steps)]
    seconds = [n / e["tokens_per_second"] for n, e in zip(tokens, steps, strict=True)]
    warm = len(steps) // 3
    step = statistics.median(seconds[warm:])
    return {
        "seconds_per_step": step,
        "tokens_per_second": statistics.mean(tokens[warm:]) / step,
        "peak_memory_bytes": peak_memory(choose_placement(config).device),
    }


if __name__ == "__main__":
    main()
