"""What a side costs: a short run alone, in a process of its own (`measure_cost`).

Only there is the peak of the memory that of the run, and only there does nothing else compute.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorica import strict_json
from lorica.compare.sides import Side

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
    with tempfile.TemporaryDirectory(dir=folder) as place:
        settings["output"] = str(Path(place) / "run")
        command = [sys.executable, "-m", __name__, json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it ended without a result"])[-1]
        return {"error": f"the run that measures the cost failed: {last}"}
    return strict_json.parse(lines[-1])


def main() -> None:
    """Train the settings of the first argument for STEPS steps, and print what they cost."""
    from lorica.core.peak_memory import peak_memory
    from lorica.training.config import read
    from lorica.training.placement import choose_placement
    from lorica.training.run import read_events
    from lorica.training.train import train

    config = read(None, json.loads(sys.argv[1]))
    result = train(config, until=STEPS, show=False)
    steps = [event for event in read_events(result.folder) if event["event"] == "step"]
    tokens = [steps[0]["tokens"]]
    tokens += [b["tokens"] - a["tokens"] for a, b in pairwise(steps)]
    seconds = [n / e["tokens_per_second"] for n, e in zip(tokens, steps, strict=True)]
    warm = len(steps) // 3
    cost = {
        "seconds_per_step": statistics.median(seconds[warm:]),
        "tokens_per_second": sum(tokens[warm:]) / sum(seconds[warm:]),
        "peak_memory_bytes": peak_memory(choose_placement(config).device),
    }
    print(json.dumps(cost))


if __name__ == "__main__":
    main()
