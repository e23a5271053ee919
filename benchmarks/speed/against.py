"""Is this commit as fast as another one? `python -m benchmarks.speed.against TREE [--builds 4]`

TREE: a checkout of the other commit, with its own benchmarks/. Lorica's sides of "same work", "as
shipped" and "at once" are built in both trees, each in a process of its own, and take turns. A
ratio is the time of this commit over that of the other one within a round: below 1 is faster.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.process import HEAP, Process
from benchmarks.speed.sections import EACH, SAME, SHIPPED
from benchmarks.speed.sides import Side

HERE = Path(__file__).parents[2]
SIDES = [
    *(side for side in SAME.sides if side.kind == "lorica"),
    *(side for side in SHIPPED.sides if side.kind == "lorica trainer"),
    *(side for side in EACH.sides if side.kind == "lorica each"),
]


class Tree(Process):
    """A side in a process that imports the package and the benchmarks of one checkout."""

    def __init__(self, side: Side, tree: Path):
        self.side = side
        paths = {"PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env={**os.environ, **HEAP, **paths},
        )


def ratios(side: Side, other: Path, builds: int) -> list[float]:
    """Time of a step here over that in the other tree, two rounds for each time they are built.

    Which tree is built first changes by turns: where a process has its memory is worth some
    percent.
    """
    draw = random.Random(0)
    times: list[float] = []
    for number in range(builds):
        trees = {path: Tree(side, path) for path in (HERE, other)[:: 1 if number % 2 else -1]}
        try:
            for tree in trees.values():
                tree("build", side=side.as_dict())
                tree("steps", warm=True)
            for _ in range(2):
                turns = draw.sample(list(trees), 2)
                seconds = {path: trees[path]("steps", warm=True)["seconds"] for path in turns}
                times.append(seconds[HERE] / seconds[other])
        finally:
            for tree in trees.values():
                tree.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.against",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("tree", type=Path)
    parser.add_argument("--builds", type=int, default=4, help="of each side, in both trees")
    parser.add_argument("--sides", nargs="*", choices=[side.name for side in SIDES])
    words = parser.parse_args()
    print(f"{'side':44} median  mean    error of the mean")
    for side in SIDES:
        if words.sides and side.name not in words.sides:
            continue
        each = ratios(side, words.tree.resolve(), words.builds)
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        mean = statistics.fmean(each)
        print(
            f"{side.name:44} {statistics.median(each):.3f}   {mean:.3f}   {error:.3f}", flush=True
        )


if __name__ == "__main__":
    main()
