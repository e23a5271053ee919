"""`lorica serve` under 16 streams for LORICA_SOAK_SECONDS (60): nothing is lost, mixed up, or kept.

A release is soaked for ten minutes: LORICA_SOAK_SECONDS=600.
"""

import json
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.cli.test_serve import serving, write_adapter
from tests.serve.live_server import eventually
from tests.serve.test_metrics import samples

SECONDS = float(os.environ.get("LORICA_SOAK_SECONDS", "60"))
STREAMS = 16
MODELS = ("bundled", "alice", "bob")
PROMPTS = ("Once upon a time", "Ticket: my stove", "vuno bvaso", "Question: Who", "a")


@dataclass
class Tally:
    """What the clients saw. answers: text by request. hung_up: answers that nobody waited for."""

    answers: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, request: str, text: str) -> None:
        """The same request has the same answer, whatever ran beside it."""
        with self.lock:
            self.counts["complete"] += 1
            if self.answers.setdefault(request, text) != text:
                self.problems.append(f"{request}: {text!r}, before {self.answers[request]!r}")


def run_client(url: str, number: int, until: float, tally: Tally) -> None:
    draw = random.Random(number)
    with httpx2.Client(base_url=url, timeout=120) as client:
        while time.monotonic() < until:
            body = {
                "model": draw.choice(MODELS),
                "prompt": draw.choice(PROMPTS),
                "max_tokens": 24,
                "seed": draw.randrange(2),
            }
            request = json.dumps(body)
            try:
                if draw.random() < 0.1:
                    hang_up(client, body)
                    tally.counts["hung up"] += 1
                elif draw.random() < 0.5:
                    tally.note(request, streamed(client, body))
                else:
                    reply = client.post("/v1/completions", json=body)
                    reply.raise_for_status()
                    tally.note(request, reply.json()["choices"][0]["text"])
            except Exception as error:
                tally.problems.append(f"{request}: {error!r}")


def streamed(client: httpx2.Client, body: dict) -> str:
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
        reply.raise_for_status()
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert events[-1] == "[DONE]", events[-1]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def hang_up(client: httpx2.Client, body: dict) -> None:
    """Leave after the first event."""
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
        next(reply.iter_lines())


def run_operator(url: str, until: float, tally: Tally) -> None:
    """Replace alice by the same content: her answers stay, her generation grows."""
    generation = 1
    while time.monotonic() < until:
        body = {"expected_generation": generation}
        reply = httpx2.put(f"{url}/admin/adapters/alice", json=body, timeout=60)
        if reply.status_code != 200:
            tally.problems.append(reply.text)
        generation += 1
        time.sleep(0.5)
    tally.counts["replaced"] = generation - 1


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_nothing_is_lost(tmp_path: Path) -> None:
    write_adapter(tmp_path / "alice", "lora", 1)
    write_adapter(tmp_path / "bob", "dora", 2)
    words = ["--adapters", str(tmp_path), "--slots", "8", "--max_length", "128"]
    with serving(*words, "--admin_port", "0") as (process, url):
        assert process.stdout is not None
        admin = process.stdout.readline().split()[1]
        threading.Thread(target=lambda: process.stderr.read(), daemon=True).start()
        tally, until = Tally(), time.monotonic() + SECONDS
        clients = [
            threading.Thread(target=run_client, args=(url, number, until, tally))
            for number in range(STREAMS)
        ]
        for thread in clients:
            thread.start()
        time.sleep(SECONDS / 4)
        before = psutil.Process(process.pid).memory_info().rss
        run_operator(admin, until, tally)
        for thread in clients:
            thread.join()
        assert eventually(lambda: figures(url)["lorica_requests_running", ""] == 0)
        after = psutil.Process(process.pid).memory_info().rss
        values = figures(url)
    print(tally.counts, f"{after / before:.3f} of the memory")
    assert tally.problems == []
    assert tally.counts["complete"] > SECONDS and tally.counts["replaced"] > SECONDS / 4
    answered = sum(v for (name, _), v in values.items() if name == "lorica_requests_total")
    assert answered == tally.counts["complete"] + tally.counts["hung up"]
    assert values["lorica_requests_waiting", ""] == 0
    assert after < before * 1.1 + 2**24


def figures(url: str) -> dict[tuple[str, str], float]:
    return samples(httpx2.get(f"{url}/metrics").text)
