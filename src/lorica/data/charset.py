"""Say in which encodings a file that is not UTF-8 can be read, and how it would read in each.

The bytes alone do not settle it: GBK read as Latin-1 is Latin-1 too, and is learned as such. So
the line at fault is shown in every encoding that reads it, and the user chooses. Names are those
that both iconv and Python know.
"""

import codecs
import re

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
EAST_ASIAN = ("GB18030", "SHIFT_JIS", "EUC-KR", "BIG5")
EIGHT_BITS = ("CP1252", "CP1251")
SAMPLE = 2**16  # bytes that are tried
SHOWN = 24  # characters of the line at fault
HIGH = re.compile(rb"[\x80-\xff]+")


def encodings(data: bytes, at: int) -> dict[str, str]:
    """Encodings that read `data`, the likeliest first: name -> the text around byte `at`.

    data: the beginning of the file, or a part of it from the start of a line on.
    """
    names = _names(data)
    found = {}
    for name in names:
        try:
            text = codecs.getincrementaldecoder(name)().decode(data[:SAMPLE])
            before = codecs.getincrementaldecoder(name)().decode(data[:at])
        except UnicodeDecodeError:
            continue
        start = max(len(before) - SHOWN // 3, before.rfind("\n") + 1)
        found[name] = text[start : start + SHOWN].split("\n")[0].lstrip("\ufeff")
    return found


def _names(data: bytes) -> tuple[str, ...]:
    for mark, name in MARKS.items():  # UTF-32's mark begins with that of UTF-16
        if data.startswith(mark):
            return (name,)
    sample = data[:SAMPLE]
    even, odd = (sample[i::2].count(0) / max(len(sample[i::2]), 1) for i in (0, 1))
    if max(even, odd) > 0.2:
        return ("UTF-16LE",) if odd > even else ("UTF-16BE",)
    runs = HIGH.findall(sample)
    pairs = sum(len(run) >= 2 for run in runs)
    # A letter with an accent stands alone among ASCII; characters of East Asia are pairs.
    return (*EAST_ASIAN, *EIGHT_BITS) if 2 * pairs > len(runs) else (*EIGHT_BITS, *EAST_ASIAN)
