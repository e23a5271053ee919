"""README's "Serve them", command by command: three customers are trained, served, and asked."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

ROOT = Path(__file__).parents[2]
SECTION = re.search(r"^## Serve them$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)


def commands() -> list[list[str]]:
    """The commands of the section, a line each; the body of curl spans two."""
    assert SECTION is not None
    text = "".join(re.findall(r"(?:^    .*\n)+", SECTION[1], re.M))
    words = shlex.split(text)
    starts = [i for i, word in enumerate(words) if word in ("pip", "python", "lorica", "curl")]
    return [words[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def as_run(command: list[str]) -> list[str]:
    start = {"python": [sys.executable], "lorica": [sys.executable, "-m", "lorica"]}
    return [*start[command[0]], *command[1:]]


@pytest.mark.slow
def test_the_section_of_the_readme(tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "world").symlink_to(ROOT / "world")
    pip, *prepare, serve, curl = commands()
    assert pip == ["pip", "install", "-e", ".[serve]"]
    for command in prepare:
        subprocess.run(as_run(command), cwd=tmp_path, check=True, capture_output=True)
    assert [command[2] for command in (serve, *prepare[-1:])] == ["bundled", "--each"]
    with subprocess.Popen(
        [*as_run(serve), "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            printed = [server.stdout.readline().split() for _ in range(3)]
            banner = "bundled with 3 adapters (alice, bob, carol); 16 slots of 512 tokens"
            assert " ".join(printed[0]) == banner
            assert banner in (ROOT / "docs/guides/serving.md").read_text()
            address = printed[1][1]
            ask_by_curl(curl, address)
            ask_by_openai(address)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def ask_by_curl(command: list[str], address: str) -> None:
    command = [word.replace("http://localhost:8000/", address) for word in command]
    done = subprocess.run([*command, "--silent"], check=True, capture_output=True, timeout=60)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["text"] == "negative"
    assert answer["lorica"]["alias"] == "bob"
    assert len(answer["lorica"]["digest"]) == 64


def ask_by_openai(address: str) -> None:
    client = OpenAI(base_url=f"{address}v1", api_key="none")
    models = client.models.list()
    assert [model.id for model in models] == ["bundled", "alice", "bob", "carol"]
    ticket = "Ticket: My order M-7976 was for a stove. It has a split in the middle.\nRecord:"
    chunks = client.completions.create(
        model="alice", prompt=ticket, temperature=0, max_tokens=64, stream=True
    )
    record = json.loads("".join(chunk.choices[0].text for chunk in chunks))
    assert record["product"] == "stove"
    assert record["order"] == "M-7976"
    page = subprocess.run(
        ["curl", "--silent", address], check=True, capture_output=True, text=True
    ).stdout
    assert "<title>" in page
