"""Check regular expressions over layer names before they are used.

A pattern may come from an adapter folder of unknown origin, and Python's matcher can run for ever
on a few dozen characters (`(a+)+$`). No thread can stop it. So a pattern with more than two
repetitions, or with a repeated group, is first matched in a child process that can be killed. If it
ends there within the limit, it ends here too: the pattern and the names are the same.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence

from lorica.errors import TargetError

SECONDS = 5.0
MAX_LENGTH = 200_000
"""Characters of a pattern; one that lists every layer of a large model has some 50,000."""
_REPEATED = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")
_MATCH = (
    "import json, re, sys\n"
    "pattern, names = json.load(sys.stdin)\n"
    "compiled = re.compile(pattern)\n"
    "[compiled.match(name) for name in names]\n"
)


def check_pattern(setting: str, pattern: str, names: Sequence[str]) -> None:
    """Raises: TargetError if `pattern` is not a regular expression, or takes too long on `names`.

    setting: the one that has it, for the message. The pattern is anchored as `Targets` does it.
    """
    if len(pattern) > MAX_LENGTH:
        raise TargetError(
            f"{setting} has a pattern of {len(pattern):,} characters.", fix="write a list of names"
        )
    anchored = rf"(.*\.)?({pattern})$"
    try:
        with warnings.catch_warnings():  # [[ will have another meaning in a later Python
            warnings.simplefilter("error", FutureWarning)
            re.compile(pattern)
            re.compile(anchored)
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise TargetError(
            f"{setting} has {pattern!r:.200}, which is not a regular expression: {error}.",
            fix="write a list of names, or correct the expression",
        ) from None
    repeated = _REPEATED.findall(pattern)
    if len(repeated) <= 2 and not _REPEATED_GROUP.search(pattern):
        return
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    try:
        subprocess.run(
            command,
            input=json.dumps([anchored, list(names)]),
            text=True,
            timeout=SECONDS,
            check=True,
            capture_output=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        raise TargetError(
            f"{setting} has {pattern!r:.200}, which takes more than {SECONDS:.0f} s to match "
            f"{len(names)} layer names.",
            fix="write a list of names, or an expression without repetitions inside repetitions",
        ) from None
