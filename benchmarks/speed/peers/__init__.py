"""Libraries that are compared, each in an environment of its own: their versions do not agree.

    python -m benchmarks.speed.peers.install            all of them, into .peers/
    python -m benchmarks.speed.peers.install --only trl one

<name>.txt pins what is installed, <name>.py is the side that its interpreter runs.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[2] / ".peers"


def interpreter(peer: str) -> Path | None:
    """Of the environment of `peer` ("": ours); None if it is not installed."""
    python = FOLDER / peer / "bin/python" if peer else Path(sys.executable)
    return python if python.is_file() else None
