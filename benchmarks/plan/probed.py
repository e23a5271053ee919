"""What `lorica plan --measure` measures: `python -m benchmarks.plan.probed RECIPE FOLDER OUT`.

It is the process of lorica.plan.measure, without the one that would wait for it.
"""

import json
import sys
from pathlib import Path

from lorica.plan.probe import measure
from lorica.training.config import read


def main() -> None:
    recipe, folder, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps(measure(read(recipe), folder)))


if __name__ == "__main__":
    main()
