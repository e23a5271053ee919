"""Libraries that are compared, each in an environment of its own: their versions do not agree.

    python -m benchmarks.speed.peers.install            all of them, into .peers/
    python -m benchmarks.speed.peers.install --only trl one

<name>.txt pins what is installed, <name>.py is the side that its interpreter runs.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[2] / ".peers"


READY = ".ready"
"""A file that an environment has once its installation came to its end."""


def interpreter(peer: str) -> Path | None:
    """Of the environment of `peer` ("": ours); None if it is not installed."""
    if not peer:
        return Path(sys.executable)
    return FOLDER / peer / "bin/python" if (FOLDER / peer / READY).is_file() else None
