"""JSON that others wrote: what would mislead or break a reader is refused."""

import pytest

from lorica import strict_json
from lorica.errors import FileError

WRONG = {
    "twice": ('{"a": 1, "a": 2}', "'a' is there twice"),
    "deep": ("[" * 40 + "]" * 40, "nested deeper"),
    "very deep": ("[" * 100_000, "nested deeper"),
    "deep in keys": ('{"a":' * 40 + "1" + "}" * 40, "nested deeper"),
    "half a pair": ('{"a": "\\ud800"}', "surrogate"),
    "half a pair in a key": ('{"\\udc00": 1}', "surrogate"),
    "long number": ('{"a": %s}' % ("9" * 6000), "6,000 digits"),
    "NaN": ('{"a": NaN}', "NaN"),
    "infinity": ('{"a": -Infinity}', "-Infinity"),
    "cut": ('{"a": 1', "Expecting"),
    "empty": ("", "Expecting"),
    "NUL": ("\0", "Expecting"),
    "no UTF-8": (b'{"a": "\xff"}', "decode"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_with_the_reason(tmp_path, name):
    text, reason = WRONG[name]
    with pytest.raises(ValueError, match=reason):
        strict_json.parse(text)
    (tmp_path / "file").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileError, match=f"file cannot be read: .*{reason}"):
        strict_json.read(tmp_path / "file")


def test_what_is_right_is_read(tmp_path):
    value = {"a": [1, -2.5e3, None, True, {"é": "\N{GRINNING FACE}"}], "b": 10**39}
    (tmp_path / "file").write_text(
        str(value).replace("'", '"').replace("None", "null").replace("True", "true"),
        encoding="utf-8",
    )
    assert strict_json.read(tmp_path / "file") == value
    assert strict_json.parse("[Infinity]", finite=False) == [float("inf")]


@pytest.mark.parametrize("text", ["[]", "1", '"text"', "null"])
def test_a_file_holds_an_object(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(FileError, match="not an object"):
        strict_json.read(tmp_path / "file")
