"""golden.jsonl of an adapter's or a model's folder: what it answers, to be compared elsewhere.

The first line may be a header, and each other line is a row:

    {"golden": 1, "name": "tickets", "base": "bundled", ...}
    {"ids": [1, 52, 7], "logprobs": [-2.31, -0.04], "prompt": 2, "base_logprobs": [-0.9], ...}

Log-probabilities are natural logarithms, computed in float32. Rows that others wrote may have ids
and logprobs alone.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lorica import plain_files, strict_json
from lorica.errors import FileError
from lorica.formats import commit

GOLDEN = "golden.jsonl"
FORMAT = 1
MAX_BYTES = 4 * 2**20
MAX_ROWS = 256
MAX_IDS = 4096
"""Tokens of one row."""
FIX = "export it again"


@dataclass(frozen=True, kw_only=True)
class GoldenHeader:
    """What the rows are of.

    golden: the version of the format. name: of the export. base: where the base was loaded from;
    base_digest: sha256 of its fingerprint. method: of the adapter. kind: how its prompts are
    written, see data/prompt_format.py, or "unknown". template_sha256: of the chat template; None:
    it has none.
    stop_tokens, stop_strings: what ends an answer. difference: of a logit between what was recorded
    and the files that were written: 0 unless they are rounded.
    """

    golden: int
    name: str
    base: str
    base_digest: str
    method: str
    kind: str
    template_sha256: str | None
    stop_tokens: tuple[int, ...]
    stop_strings: tuple[str, ...]
    difference: float = 0.0


@dataclass(frozen=True)
class GoldenRow:
    """One prompt, and the greedy answer to it.

    ids: (T,) of prompt and answer, with the stop token that ended it. logprobs: (T - 1,) of each id
        but the first, under the adapter, given those before it.
    condition: of an adapter that has conditions; None: it has none.
    prompt: how many of the ids are the prompt; None: not known.
    base_logprobs: for each token of the answer, the log-probability of the base's most probable
        token at its place.
    ended: "stop" or "length": why the answer ended there.
    text: of the answer, without its stop. prompt_text: the prompt as text, where it is no
        conversation. messages: the conversation, where it is one.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    condition: str | None = None
    prompt: int | None = None
    base_logprobs: tuple[float, ...] | None = None
    ended: str | None = None
    text: str | None = None
    prompt_text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None

    @property
    def answer(self) -> tuple[int, ...]:
        """The ids of the answer."""
        return self.ids[self.prompt or len(self.ids) :]

    @property
    def answer_logprobs(self) -> tuple[float, ...]:
        """Of the answer's ids: of the most probable token at each place, for it is greedy."""
        return self.logprobs[len(self.ids) - len(self.answer) - 1 :] if self.answer else ()


@dataclass(frozen=True)
class Golden:
    """header: None: others wrote the rows."""

    rows: tuple[GoldenRow, ...]
    header: GoldenHeader | None = None


_HEADER, _ROW = TypeAdapter(GoldenHeader), TypeAdapter(GoldenRow)


def write_golden(folder: Path, golden: Golden) -> None:
    """Write golden.jsonl into a folder. Raises: ResourceError."""
    lines: list[dict[str, Any]] = [] if golden.header is None else [asdict(golden.header)]
    lines += [{k: v for k, v in asdict(row).items() if v is not None} for row in golden.rows]
    commit.write_text(folder / GOLDEN, "".join(json.dumps(line) + "\n" for line in lines))


def read_golden(folder: Path) -> Golden | None:
    """The recorded answers in a folder; None: it has none. Raises: FileError."""
    path = folder / GOLDEN
    if not plain_files.is_file(path):
        return None
    lines = [
        (_parsed(line, f"{path}:{number}"), f"{path}:{number}")
        for number, line in enumerate(plain_files.read_bytes(path, MAX_BYTES).splitlines(), start=1)
    ]
    header = None
    if lines and "golden" in lines[0][0]:
        header = _header(*lines.pop(0))
    if not 1 <= len(lines) <= MAX_ROWS:
        raise FileError(f"{path} has {len(lines)} rows; it may have 1 to {MAX_ROWS}.", fix=FIX)
    return Golden(tuple(_row(fields, where) for fields, where in lines), header)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = strict_json.parse(line)
    except ValueError as error:
        raise FileError(f"{where} cannot be read: {error}.", fix=FIX) from None
    return value if isinstance(value, dict) else {}


def _header(fields: dict[str, Any], where: str) -> GoldenHeader:
    if fields["golden"] != FORMAT:
        raise FileError(
            f"{where} has format {fields['golden']!r:.80}; this lorica reads {FORMAT}.",
            fix="install the release that wrote it",
        )
    try:
        header = _checked(_HEADER, GoldenHeader, fields)
        if not (
            header.name.isprintable()
            and len(header.name) <= 255
            and 0 <= header.difference < math.inf
        ):
            raise TypeError("its name or its difference cannot be one")
        return header
    except (ValidationError, TypeError) as error:
        raise FileError(f"{where} is no header of recorded answers.", why=error, fix=FIX) from None


def _row(fields: dict[str, Any], where: str) -> GoldenRow:
    try:
        row = _checked(_ROW, GoldenRow, fields)
    except (ValidationError, TypeError):
        row = None
    if row is None or not _is_consistent(row):
        raise FileError(
            f'{where} is no row {{"ids": [...], "logprobs": [...]}} of 2 to {MAX_IDS} ids with '
            "one log-probability less.",
            fix=FIX,
        )
    return row


def _checked(adapter: TypeAdapter[Any], kind: type, fields: dict[str, Any]) -> Any:
    """A dataclass of strictly typed fields. Raises: ValidationError; TypeError: unknown fields."""
    if unknown := fields.keys() - kind.__dataclass_fields__.keys():
        raise TypeError(f"unknown fields: {', '.join(sorted(unknown))[:200]}")
    return adapter.validate_json(json.dumps(fields), strict=True)


def _is_consistent(row: GoldenRow) -> bool:
    answer = len(row.answer)
    return (
        2 <= len(row.ids) <= MAX_IDS
        and len(row.logprobs) == len(row.ids) - 1
        and all(i >= 0 for i in row.ids)
        and all(map(math.isfinite, [*row.logprobs, *(row.base_logprobs or ())]))
        and (row.prompt is None or 1 <= row.prompt < len(row.ids))
        and (row.base_logprobs is None or len(row.base_logprobs) == answer > 0)
        and row.ended in (None, "stop", "length")
    )
