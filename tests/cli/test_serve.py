"""lorica serve: mistakes on the command line, and the whole command as a person uses it."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
import torch

import lorica
from lorica.base.load import load
from lorica.cli import main, run
from lorica.cli.served_adapters import parse_adapters
from lorica.core.state import adapter_state
from lorica.serve.keys_file import new_entry
from tests.serve.live_server import eventually
from tests.serve.real_server import accepted


def write_adapter(folder: Path, method: str, seed: int) -> Path:
    """An adapter over the bundled base that answers otherwise than the base."""
    loaded = load("bundled")
    lorica.adapt(loaded.model, lorica.method(method))
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_state(loaded.model).values():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    lorica.save(loaded.model, folder, base_path="bundled", tokenizer=loaded.tokenizer)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    write_adapter(root / "alice", "lora", 1)
    write_adapter(root / "bob", "dora", 2)
    return root


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--adapter", "alice"], ["is not of the form NAME=FOLDER"]),
        (["--adapter", "=runs"], ["NAME=FOLDER"]),
        (["--adapter", "a=x", "--adapter", "a=y"], ["two adapters", "'a'", "rename"]),
        (["--conditions", "h=a,b"], ["is no adapter", "--adapter h=FOLDER"]),
        (["--admin_port", "0", "--admin_socket", "s"], ["both given", "choose one"]),
        (["--host", "0.0.0.0", "--port", "0"], ["no keys", "lorica key NAME", "--keys keys.yaml"]),
        (["--host", "::", "--port", "0"], ["no keys"]),
        (["--host", "no.such.host.invalid", "--port", "0"], ["cannot listen", "--host"]),
        (["--keys", "nowhere.yaml", "--port", "0"], ["nowhere.yaml", "lorica key"]),
        (["--adapter", "bundled=runs"], ["name of the base", "--adapter NAME=runs"]),
        (["--slots", "0"], ["slots"]),
        (["--port", "70000"], ["port"]),
        (["--timeout", "0"], ["timeout"]),
    ],
)
def test_mistakes_are_answered_before_the_base_is_loaded(words, parts, capsys, monkeypatch):
    monkeypatch.setattr("lorica.serve.build.open_engine", None)
    status = run(["serve", "bundled", *words])
    printed = capsys.readouterr().err
    assert status in (2, 4), printed
    assert not [part for part in parts if part not in printed], printed


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", "bundled", "--port", port]) == 4
        assert "choose another --port" in capsys.readouterr().err
        assert run(["serve", "bundled", "--port", "0", "--admin_port", port]) == 4
        assert "choose another --admin_port" in capsys.readouterr().err


def test_without_the_extra_the_message_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("lorica.serve.run", "lorica.serve.connection"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("lorica.serve.run", raising=False)
    assert run(["serve", "bundled"]) == 5
    assert "pip install 'lorica[serve]'" in capsys.readouterr().err


def test_all_adapters_that_cannot_be_served_are_named_at_once(root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = ["serve", "bundled", "--port", "0", "--max_length", "64"]
    words += ["--adapter", f"alice={root / 'alice'}", "--adapter", f"x={tmp_path / 'empty'}"]
    assert run([*words, "--adapter", f"Y={root / 'bob'}"]) == 2
    printed = capsys.readouterr().err
    assert "2 adapters cannot be served" in printed
    assert re.search(r"^  x +\S", printed, re.M) and re.search(r"^  Y +\S", printed, re.M)


def test_conditions_and_names_of_a_folder(root):
    alice = root / "alice"
    parsed = parse_adapters([f"bob={alice}"], ["alice=ve-ol,ol-ve", "alice=en-fr"], root)
    assert parsed.named == {"bob": alice} and parsed.in_folder == {"alice": alice}
    assert parsed.conditions == {"alice": ["ve-ol", "ol-ve", "en-fr"]}
    [notice] = parsed.notices
    assert "bob is not served: --adapter bob is another one" in notice


@pytest.fixture
def started(monkeypatch, capsys):
    """`lorica serve` up to where it waits for requests, and a SIGHUP there: (stdout, stderr)."""

    def wait(*_: object, on_hangup: Callable[[], None], **__: object) -> int:
        on_hangup()
        return 0

    monkeypatch.setattr("lorica.serve.run.run", wait)

    def start(*words: str) -> tuple[str, str]:
        assert run(["serve", "bundled", "--port", "0", *words]) == 0
        return capsys.readouterr()

    return start


def test_an_adapter_of_a_folder_that_fails_is_named_and_not_counted(root, tmp_path, started):
    shutil.copytree(root, tmp_path / "all")
    carol = shutil.copytree(root / "alice", tmp_path / "all" / "carol")
    [weights] = carol.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    shutil.copytree(root / "alice", tmp_path / "all" / "bundled")
    out, err = started("--adapters", str(tmp_path / "all"))
    assert f"{tmp_path / 'all' / 'bundled'} is not served: it has the name of the base" in err
    assert "bundled with 2 adapters (alice, bob); not served: carol; 16 slots of 512" in out
    [line] = [line for line in err.splitlines() if line.startswith("carol: not served")]
    assert weights.name in line and "its SHA-256 differs" in line
    assert "loading the base bundled" in err and f"bob: loading {tmp_path}" in err
    assert "--max_length" not in err
    assert re.search(r"^[0-9]{4}-[0-9-]+ [0-9:]+ SIGHUP: ignored", err, re.M), err


def test_what_is_printed_can_be_used(root, started, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(new_entry("acme", adapters=["alice", "dora"], base=False, admin=False)[1])
    keys.chmod(0o644)
    words = ["--max_length", "4096", "--host", "0.0.0.0", "--keys", str(keys)]
    out, err = started("--adapter", f"alice={root / 'alice'}", *words)
    assert re.search(r"^API +http://127\.0\.0\.1:[0-9]+/v1$", out, re.M), out
    assert "--max_length 4096: the base's context is 512 tokens" in err
    assert f"{keys}: other users of this machine can read this file (mode 644)" in err
    assert f"{keys}: acme may use dora, which is not served" in err
    assert f"SIGHUP: {keys} has been read again: 1 tenant" in err


def test_who_reads_the_address_may_connect_at_once(small_base, monkeypatch, capsys):
    """It was printed before the sockets listened: the first request was refused now and then."""

    def connect(engine, listeners, **_) -> int:
        assert "API" in capsys.readouterr().out
        for listener in listeners:
            socket.create_connection(listener.socket.getsockname(), timeout=20).close()
        return 0

    monkeypatch.setattr("lorica.serve.run.run", connect)
    assert run(["serve", str(small_base), "--port", "0", "--admin_port", "0"]) == 0


def test_the_interpreter_does_not_look_for_cycles_when_it_ends(monkeypatch):
    frozen = []
    monkeypatch.setattr("gc.freeze", lambda: frozen.append(True))
    monkeypatch.setattr("sys.argv", ["lorica", "--version"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit):
        main()
    assert frozen


# -- the whole command ----------------------------------------------------------------------------


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """(process, URL) of a `lorica serve` that is ready."""
    command = [sys.executable, "-m", "lorica", "serve", "bundled", "--port", "0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("API"):
                break
        url = line.split()[1].removesuffix("/v1")
        assert eventually(lambda: is_ready(url), 60)
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready").status_code == 200
    except httpx2.ConnectError:
        return False


class UnixConnection(http.client.HTTPConnection):
    """To the operator's socket."""

    def __init__(self, path: Path):
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


@pytest.mark.slow
def test_customers_with_keys_and_an_operator(root, tmp_path):
    alice, alice_lines = new_entry("acme", adapters=["alice"], base=False, admin=False)
    ops, ops_lines = new_entry("ops", adapters=[], base=False, admin=True)
    keys, admin = tmp_path / "keys.yaml", tmp_path / "admin.sock"
    keys.write_text(alice_lines + ops_lines)
    keys.chmod(0o600)
    words = ["--adapters", str(root), "--keys", str(keys), "--admin_socket", str(admin)]
    with serving(*words, "--max_length", "64") as (process, url):
        assert admin.stat().st_mode & 0o777 == 0o600
        with openai.OpenAI(base_url=f"{url}/v1", api_key=alice, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["alice"]
            answer = client.completions.create(model="alice", prompt="Once", max_tokens=5)
            assert answer.model_extra["lorica"]["alias"] == "alice"
            for model in ("bob", "bundled", "nobody"):
                with pytest.raises(openai.NotFoundError):
                    client.completions.create(model=model, prompt="Once")
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        for key, status in ((alice, 403), (ops, 200)):
            asking = UnixConnection(admin)
            headers = {"Authorization": f"Bearer {key}"}
            asking.request("GET", "/admin/adapters", headers=headers)
            reply = asking.getresponse()
            assert reply.status == status
            listed = json.loads(reply.read())
            asking.close()
        assert {card["id"] for card in listed["data"]} == {"alice", "bob"}
        assert httpx2.get(f"{url}/metrics", headers=headers).status_code == 200
        assert httpx2.get(f"{url}/").status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not admin.exists()
    assert "lorica serve: stopped" in err
    assert alice not in err and ops not in err and "Once" not in err


@pytest.mark.slow
def test_sigterm_under_load_cuts_no_stream_without_an_error_event(root):
    words = ["--adapters", str(root), "--slots", "4", "--drain_timeout", "1"]
    with serving(*words) as (process, url):
        endings: list[str] = []

        def stream(number: int) -> None:
            body = {
                "model": ("alice", "bob", "bundled")[number % 3],
                "prompt": "Once upon a time",
                "max_tokens": 400,
                "stream": True,
                "seed": number,
            }
            with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
                lines = [line for line in reply.iter_lines() if line]
            last = lines[-1].removeprefix("data: ")
            endings.append(last if last == "[DONE]" else json.loads(last)["error"]["code"])

        threads = [threading.Thread(target=stream, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        metrics = f"{url}/metrics"
        assert eventually(lambda: accepted(httpx2.get(metrics).text) == len(threads))
        assert eventually(lambda: httpx2.get(metrics).text.count('reason="') > 0)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(endings) == 24 and set(endings) <= {"[DONE]", "unavailable"}
    cut = endings.count("unavailable")
    assert (f"{cut} answer" in err) or not cut


@pytest.mark.slow
def test_a_killed_client_frees_its_slot(root):
    """`kill -9` of a process that reads a stream."""
    code = (
        "import httpx2, sys\n"
        "body = {'model': 'alice', 'prompt': 'x', 'max_tokens': 480, 'stream': True}\n"
        "with httpx2.stream('POST', sys.argv[1], json=body, timeout=60) as reply:\n"
        "    for line in reply.iter_lines():\n"
        "        print('got', flush=True)\n"
    )
    with serving("--adapters", str(root), "--slots", "1") as (_, url):
        metrics = f"{url}/metrics"
        for _ in range(3):
            command = [sys.executable, "-c", code, f"{url}/v1/completions"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout is not None and client.stdout.readline() == "got\n"
                client.kill()
            assert eventually(lambda: "lorica_requests_running 0.0" in httpx2.get(metrics).text)
        body = {"model": "bob", "prompt": "x", "max_tokens": 2}
        assert httpx2.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
