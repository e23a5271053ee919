"""The bases of the runs. `python -m benchmarks.plan.bases NAME FOLDER` writes one: torch is in that
process, and not in the one that starts the runs."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.work import Shape

RANDOM = {
    "58M": Shape(),
    "24M wide": Shape(layers=2, width=768, mlp=2048, heads=12, vocabulary=8_000),
    "31M deep": Shape(layers=24, width=320, mlp=960, heads=5, vocabulary=4_096),
    "19M": Shape(layers=12, width=320, mlp=1_100, heads=10, vocabulary=12_000),
}
"""Llamas with random weights. The table has 58M; the others check that its constants hold for other
shapes."""


def path_of(name: str, folder: Path, shared: Path) -> str:
    """The base `name` as a recipe names it; one of random weights is written to `folder` first."""
    if name == "260K":
        return str(shared / "data/models/stories260K")
    if name == "5M":
        return "bundled"
    path = folder / name.replace(" ", "-")
    if not path.is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.plan.bases", name, path], check=True)
    return str(path)


def write(name: str, folder: Path) -> None:
    """Random weights in float32, and the tokenizer of the bundled base."""
    from lorica.base.bundled import FOLDER

    part = folder.with_name(f"{folder.name}.part")
    RANDOM[name].model("float32").save_pretrained(part)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / file, part / file)
    part.rename(folder)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
