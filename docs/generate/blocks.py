"""Code blocks of a documentation page, and how they are run.

A page's blocks run in order, in one folder:

    ```bash                        run by bash; a command that fails fails the page
    ```python                      run by Python
    ```yaml title="recipe.yaml"    written to that file (any language)
    ```text                        after a command: lines that it prints, in this order

A comment on the line before a block changes that:

    <!-- not run: it needs a GPU -->     the block is not run, for this reason
    <!-- exit status 3 -->               the command must end with this status

Numbers in a text block stand for any number, and only the lines that a page shows are compared.

    python -m docs.generate.blocks docs/guides/files.md    runs a page, and brings it up to date

That fills empty text blocks, and replaces lines that are not printed any more by the printed lines
that are most like them.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n+)?"
    r"(?P<indent>[ ]*)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = "not run: "
MASKS = (
    (r"[+-]?\d[\d,.]*(e[+-]?\d+)?", "#"),
    (r"# (ms|s|min|h|days?)\b", "# s"),
    (r"; the plan was too (short|long).*", ""),
    (r"[\s─█▏▎▍▌▋▊▉]+", " "),
)
"""What differs from machine to machine: numbers, units of time, whether a run kept to its plan; and
how wide a table is."""
UNSHOWN = re.compile(r".*: starting$|(.*: )?step \d+/|evaluating: |Failed to load CPU gemm")


@dataclass(frozen=True)
class Block:
    """One fenced block. mark: the comment before it, or ""; title: a file name, or ""."""

    language: str
    text: str
    mark: str
    title: str
    end: int

    @property
    def reason_not_run(self) -> str:
        return self.mark.removeprefix(NOT_RUN) if self.mark.startswith(NOT_RUN) else ""

    @property
    def status(self) -> int:
        """The exit status that its command must have."""
        found = re.fullmatch(r"exit status (\d+)", self.mark)
        return int(found[1]) if found else 0

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and not self.title and not self.reason_not_run


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(
            language=m["language"],
            text="".join(line.removeprefix(m["indent"]) for line in m["text"].splitlines(True)),
            mark=m["mark"] or "",
            title=m["title"] or "",
            end=m.end("text"),
        )
        for m in FENCE.finditer(page)
    ]


def run(block: Block, folder: Path) -> str:
    """Run one block in `folder`. Returns what it prints, errors included.

    Raises: AssertionError if its exit status is another one than the page says.
    """
    shell = ["bash", "-euo", "pipefail", "-c", block.text]
    command = shell if block.language == "bash" else [sys.executable, "-c", block.text]
    bins = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PATH": bins,
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "100",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == block.status, (
        f"exit status {done.returncode} instead of {block.status}:\n{block.text}\n{done.stdout}"
    )
    return done.stdout


def outputs(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run a page. Yields each text block with what the command before it printed."""
    printed: str | None = None
    for block in blocks_of(page):
        if block.title and not block.reason_not_run:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
        elif block.runs:
            printed = run(block, folder)
        elif block.language == "text" and printed is not None:
            yield block, printed
            printed = None


def missing_line(shown: str, printed: str) -> str | None:
    """The first line of `shown` that `printed` does not have after those before it."""
    rest = iter([masked(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        if masked(line) and masked(line) not in rest:
            return line
    return None


def masked(line: str) -> str:
    for pattern, replacement in MASKS:
        line = re.sub(pattern, replacement, line)
    return line.strip()


def updated(shown: str, printed: str) -> str:
    """The lines of a text block as the command prints them now.

    An empty block gets all lines but progress. A line that is not printed any more is replaced by
    the one most like it, or dropped if there is none.
    """
    lines = [line.rstrip() for line in printed.splitlines() if not UNSHOWN.match(line)]
    if not shown.strip():
        return "\n".join(lines).strip("\n") + "\n"
    if missing_line(shown, printed) is None:
        return shown
    known = set(map(masked, lines))
    kept = (not masked(line) or masked(line) in known for line in shown.splitlines())
    found = [
        line if keep else _most_like(line, lines)
        for line, keep in zip(shown.splitlines(), kept, strict=True)
    ]
    return "".join(f"{line}\n" for line in found if line is not None)


def _most_like(line: str, lines: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(line, lines, n=1, cutoff=0.5)), None)


def update(path: Path) -> None:
    """Run the page at `path`, and bring its text blocks up to date."""
    page = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        for block, printed in reversed(list(outputs(page, Path(folder)))):
            new = updated(block.text, printed)
            page = page[: block.end - len(block.text)] + new + page[block.end :]
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        update(Path(name))
