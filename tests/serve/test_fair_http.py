"""Keys, tenants and fairness through HTTP, on the real engine over the bundled base."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2
import pytest

from lorica.base.load import load
from lorica.serve.auth import Access
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.engine import ServingEngine
from lorica.serve.keys_file import new_entry, read_keys
from tests.serve.live_server import Live, create_gate, eventually, running

MANY = 60, 200
TENANTS = {"many": "", "single": "", "counted": "  requests_per_minute: 2\n", "away": ""}


@pytest.fixture(scope="module")
def access_and_keys(tmp_path_factory) -> tuple[Access, dict[str, str]]:
    path, keys, text = tmp_path_factory.mktemp("keys") / "keys.yaml", {}, ""
    for name, quota in TENANTS.items():
        adapters, base = (["alice"], False) if name == "away" else ([], True)
        keys[name], lines = new_entry(name, adapters=adapters, base=base, admin=False)
        text += lines + quota
    path.write_text(text)
    return read_keys(path, base_name="bundled")[0], keys


@pytest.fixture(scope="module")
def engine(access_and_keys) -> Iterator[ServingEngine]:
    settings = EngineSettings(
        slots=4,
        max_length=128,
        max_queued=600,
        max_queued_per_tenant=300,
        quotas=access_and_keys[0].quotas,
    )
    engine = engine_of(load("bundled"), settings)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def live(engine, access_and_keys) -> Iterator[Live]:
    gate = create_gate(engine, keys=True)
    gate.rules = replace(gate.rules, authenticate=access_and_keys[0].authenticate)
    with running(engine, gate) as server:
        yield server


@pytest.fixture
def keys(access_and_keys) -> dict[str, str]:
    return access_and_keys[1]


@pytest.fixture(scope="module")
def client(live) -> Iterator[httpx2.Client]:
    limits = httpx2.Limits(max_connections=max(MANY) + 1)
    with httpx2.Client(base_url=live.url, timeout=300, limits=limits) as client:
        yield client


def complete(client: httpx2.Client, key: str, tokens: int, model="bundled") -> httpx2.Response:
    return client.post(
        "/v1/completions",
        headers={"Authorization": f"Bearer {key}"},
        json={"model": model, "prompt": "Once", "max_tokens": tokens},
    )


@pytest.mark.slow  # the scheduler alone: test_scheduler_fairness.py
@pytest.mark.parametrize("many", MANY)
def test_one_request_beside_many_has_the_next_slot(client, engine, keys, monkeypatch, many):
    """The order of all submissions and admissions, which the engine has under one lock.

    No step is taken until all of them wait.
    """
    events: list[tuple[str, str]] = []
    submit_all, admit = engine._scheduler.submit_all, engine._scheduler.admit
    step, may_go_on = engine._decoder.step, threading.Event()

    def submit_and_note(tenant, *arguments, **options):
        tickets = submit_all(tenant, *arguments, **options)
        events.append(("submit", tenant))
        return tickets

    def admit_and_note(free):
        tickets = admit(free)
        events.extend(("admit", ticket.tenant) for ticket in tickets)
        return tickets

    monkeypatch.setattr(engine._scheduler, "submit_all", submit_and_note)
    monkeypatch.setattr(engine._scheduler, "admit", admit_and_note)
    monkeypatch.setattr(engine._decoder, "step", lambda: (may_go_on.wait(), step())[1])
    with ThreadPoolExecutor(many + 1) as pool:
        try:
            replies = [pool.submit(complete, client, keys["many"], 8) for _ in range(many)]
            assert eventually(lambda: events.count(("submit", "many")) == many, 200)
            replies.append(pool.submit(complete, client, keys["single"], 4))
            assert eventually(lambda: ("submit", "single") in events)
        finally:
            may_go_on.set()
        assert {reply.result().status_code for reply in replies} == {200}
    after = events[events.index(("submit", "single")) + 1 :]
    admitted = [tenant for event, tenant in after if event == "admit"]
    assert admitted[0] == "single" and len(admitted) > many - engine._decoder.slots
    assert engine._scheduler.queued == engine._scheduler.running == 0


def test_a_quota_that_is_used_up_is_429_with_retry_after(client, keys):
    replies = [complete(client, keys["counted"], 2) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert 1 <= int(replies[2].headers["retry-after"]) <= 60
    assert "2 requests per minute" in replies[2].json()["error"]["message"]


def test_a_tenant_without_the_base_cannot_tell_that_it_exists(client, keys):
    def answer(model: str) -> tuple[int, str]:
        reply = complete(client, keys["away"], 2, model)
        return reply.status_code, reply.text.replace(model, "MODEL")

    assert answer("bundled") == answer("nothing") == answer("alice")
    assert answer("bundled")[0] == 404


def test_a_key_is_in_no_reply_and_no_log(client, keys, caplog):
    caplog.set_level(0)
    secret = keys["single"].removeprefix("lorica-")
    replies = [
        complete(client, keys["single"], 2),
        complete(client, keys["single"][:-1], 2),
        complete(client, keys["single"] + "x", 2),
    ]
    assert [reply.status_code for reply in replies] == [200, 401, 401]
    shown = caplog.text + "".join(f"{reply.headers} {reply.text}" for reply in replies)
    assert "tenant=single" in shown and secret[:20] not in shown
