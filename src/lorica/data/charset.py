"""Suggest the encodings of a file that is not UTF-8, with the text at fault in each.

The bytes alone do not decide it: GBK is valid Latin-1 too, and would be learned as such. So the
error shows the line in every encoding that can read it, and the user chooses. The names are known
to both iconv and Python.
"""

import codecs
import re
from pathlib import Path

from lorica.errors import DataError

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
EAST_ASIAN = ("GB18030", "SHIFT_JIS", "EUC-KR", "BIG5")
EIGHT_BITS = ("CP1252", "CP1251")
PIECE = 2**20  # bytes that are searched at a time
SAMPLE = 2**16  # bytes that are decoded
SHOWN = 24  # characters of the line at fault
HIGH = re.compile(rb"[\x80-\xff]+")


def not_utf8_error(path: Path) -> DataError:
    """The error that names the first byte that is not UTF-8, by line and offset."""
    offset, line, rest = 0, 1, b""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            data = rest + piece
            try:
                data.decode("utf-8")
                good = len(data)
            except UnicodeDecodeError as error:
                good = error.start
                if len(data) - good >= 4 or error.reason != "unexpected end of data":
                    break
            line += data.count(b"\n", 0, good)
            offset, rest = offset + good, data[good:]
        else:
            data, good = rest, 0
    if not data:
        return DataError(f"{path.name} was changed while it was read.", fix="try again")
    with path.open("rb") as file:
        begin = data.rfind(b"\n", 0, good) + 1 if offset else 0
        file.seek(offset + begin)
        encodings = possible_encodings(file.read(PIECE), good - begin)
    likely = next(iter(encodings), "ENCODING")
    return DataError(
        f"{path.name} is not UTF-8.",
        line=line + data.count(b"\n", 0, good),
        byte=f"0x{data[good]:02x} at offset {offset + good:,}",
        **{f"as {name}": repr(text) for name, text in encodings.items()},
        fix=f"save it as UTF-8 from the encoding that reads right: iconv -f {likely} -t utf-8 "
        f"{path.name} > {path.stem}-utf8{path.suffix}",
    )


def possible_encodings(data: bytes, at: int) -> dict[str, str]:
    """The encodings that can read `data`, the likeliest first: name -> the text around byte `at`.

    data: the beginning of the file, or a part of it that begins at the start of a line.
    """
    texts = {}
    for name in _candidates(data):
        try:
            text = codecs.getincrementaldecoder(name)().decode(data[:SAMPLE])
            before = codecs.getincrementaldecoder(name)().decode(data[:at])
        except UnicodeDecodeError:
            continue
        start = max(len(before) - SHOWN // 3, before.rfind("\n") + 1)
        texts[name] = text[start : start + SHOWN].split("\n")[0].lstrip("\ufeff")
    return texts


def _candidates(data: bytes) -> tuple[str, ...]:
    for mark, name in BYTE_ORDER_MARKS.items():  # UTF-32's begins with UTF-16's
        if data.startswith(mark):
            return (name,)
    sample = data[:SAMPLE]
    even, odd = (sample[i::2].count(0) / max(len(sample[i::2]), 1) for i in (0, 1))
    if max(even, odd) > 0.2:
        return ("UTF-16LE",) if odd > even else ("UTF-16BE",)
    runs = HIGH.findall(sample)
    pairs = sum(len(run) >= 2 for run in runs)
    # An accented letter is one high byte among ASCII; an East Asian character is a pair.
    return (*EAST_ASIAN, *EIGHT_BITS) if 2 * pairs > len(runs) else (*EIGHT_BITS, *EAST_ASIAN)
