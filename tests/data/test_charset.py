"""A file that is not UTF-8 is refused with its possible encodings, the right one first."""

import json
import subprocess

import pytest

from lorica.data.config import DataConfig
from lorica.data.source import read
from lorica.errors import DataError

TEXTS = {
    "GB18030": "你好，世界。今天天气很好",
    "SHIFT_JIS": "こんにちは世界、今日は",
    "EUC-KR": "안녕하세요 세계 오늘은",
    "CP1252": "Le café est déjà fermé à Besançon",
    "UTF-16": "plain words, and café",
    "UTF-16LE": "plain words, and café",
    "UTF-32": "plain words, and café",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt", ".json"])
@pytest.mark.parametrize("name", TEXTS)
def test_the_encoding_is_named_and_its_fix_works(tmp_path, name, suffix):
    row = {"prompt": "ascii first", "completion": TEXTS[name]}
    text = {
        ".jsonl": f'{{"prompt": "a", "completion": "b"}}\n{json.dumps(row, ensure_ascii=False)}\n',
        ".json": json.dumps([row], ensure_ascii=False),
        ".csv": f"prompt,completion\na,b\nascii,{TEXTS[name].replace(',', ';')}\n",
        ".txt": TEXTS[name],
    }[suffix]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(text.encode(name))
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        list(read(DataConfig(path=str(path))))
    assert f"as {name}" in str(caught.value), caught.value
    command = str(caught.value.fix).split(": ", 1)[1]
    if name in ("SHIFT_JIS", "EUC-KR"):  # GB18030 reads these bytes as well, and stands first
        command = command.replace("GB18030", name)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    written = (tmp_path / f"rows-utf8{suffix}").read_text(encoding="utf-8-sig")
    assert written == text


def test_the_line_at_fault_is_shown(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": "a", "completion": "b"}] * 3 + [{"prompt": "x", "completion": "naïve"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        list(read(DataConfig(path=str(path))))
    assert caught.value.facts["line"] == 4
    assert "naïve" in str(caught.value.facts["as CP1252"])
