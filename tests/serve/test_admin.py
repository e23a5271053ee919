"""The operator's app, over a real store whose bank has no model."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lorica.serve.apps import admin_gate
from lorica.serve.auth import Access, Tenant, hash_key, make_key
from lorica.serve.exchange import ModelCard
from lorica.serve.http import model_object
from lorica.serve.metrics import Metrics
from tests.serve.fake_engine import SIZE, Serving, acquire, write_adapter
from tests.serve.test_gate import routes_of
from tests.serve.word_engine import WordEngine

ADMIN, CLIENT = make_key(), make_key()
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for name, number in (("alice", 1.0), ("alice2", 2.0), ("bob", 3.0)):
        write_adapter(root / name, number)
    (root / "empty").mkdir()
    (root / "link").symlink_to(root / "alice")
    write_adapter(root.parent / "outside", 9.0)
    return root


class StoreEngine(WordEngine):
    """An engine whose adapters are those of the store, with what it knows besides of each."""

    def __init__(self, serving: Serving):
        super().__init__()
        self.store = serving.store

    def cards(self) -> list[ModelCard]:
        base = self.models[self.base_name]
        return [base, *(self._completed(card) for card in self.store.cards())]

    def card(self, model: str) -> ModelCard:
        return self._completed(*self.store.cards(model))

    def _completed(self, card: ModelCard) -> ModelCard:
        return replace(card, chat=False, max_length=77)


def gate_of(serving: Serving, root: Path | None):
    tenants = {
        hash_key(ADMIN): Tenant(name="ops", base_name="base", is_admin=True),
        hash_key(CLIENT): Tenant(name="acme", base_name="base", adapters=None, uses_base=True),
    }
    engine = StoreEngine(serving)
    return admin_gate(engine, serving.store, Metrics(engine), Access(tenants), root)


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as serving:
        yield serving


@pytest.fixture
def client(serving: Serving, root: Path) -> Iterator[TestClient]:
    with TestClient(gate_of(serving, root), base_url="http://localhost", headers=HEADERS) as client:
        yield client


def test_every_route_needs_an_operators_key(serving, root):
    guarded = gate_of(serving, root)
    routes = routes_of(guarded.app)
    assert ("POST", "/v1/load_lora_adapter") in routes and len(routes) > 9
    with TestClient(guarded, base_url="http://localhost") as client:
        for method, path in routes:
            for headers in ({}, {"Authorization": f"Bearer {CLIENT}"}):
                status = client.request(method, path.replace("{name}", "a"), headers=headers)
                expected = 200 if path.startswith("/health/") else 403 if headers else 401
                assert status.status_code == expected, path
        evil = {"Host": "evil.example", **HEADERS}
        assert client.get("/admin/adapters", headers=evil).status_code == 403


def test_load_replace_pin_and_unload(client, serving):
    made = client.post("/admin/adapters", json={"name": "alice"})
    assert made.status_code == 201
    card = made.json()
    assert (card["chat"], card["max_length"]) == (False, 77), "as the engine's cards say"
    assert client.get("/admin/adapters").json()["data"] == [card]
    assert (card["id"], card["generation"], card["state"]) == ("alice", 1, "resident")
    again = client.post("/admin/adapters", json={"name": "alice"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    stale = {"expected_generation": 7, "folder": "alice2"}
    assert client.put("/admin/adapters/alice", json=stale).status_code == 409
    assert serving.numbers == [1.0], "a refused replacement changes nothing"
    replaced = client.put(
        "/admin/adapters/alice", json={"expected_generation": 1, "folder": "alice2"}
    ).json()
    assert replaced["generation"] == 2 and replaced["digest"] != card["digest"]
    assert client.patch("/admin/adapters/alice", json={"pinned": True}).json()["pinned"]
    pinned = client.delete("/admin/adapters/alice")
    assert pinned.status_code == 409 and "unpin" in pinned.json()["error"]["message"]
    assert not client.patch("/admin/adapters/alice", json={"pinned": False}).json()["pinned"]
    assert client.delete("/admin/adapters/alice?expected_generation=1").status_code == 409
    gone = client.delete("/admin/adapters/alice?expected_generation=2").json()
    assert gone == {"id": "alice", "object": "model", "deleted": True, "freed_bytes": SIZE}
    assert client.get("/admin/adapters").json()["data"] == []
    unknown = client.delete("/admin/adapters/alice")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"].startswith("no adapter has this name.")
    assert client.patch("/admin/adapters/alice", json={"pinned": True}).status_code == 404


def test_a_replaced_adapter_that_streams_is_listed_as_draining(client, serving):
    client.post("/admin/adapters", json={"name": "alice"})
    lease = acquire(serving.store, "alice")
    client.put("/admin/adapters/alice", json={"expected_generation": 1, "folder": "alice2"})
    listed = client.get("/admin/adapters").json()
    assert [(c["generation"], c["state"]) for c in listed["draining"]] == [(1, "draining")]
    lease.release()
    assert client.get("/admin/adapters").json()["draining"] == []


def test_vllms_names(client, root):
    load = {"lora_name": "sql", "lora_path": "bob"}
    reply = client.post("/v1/load_lora_adapter", json=load)
    assert reply.text == "Success: LoRA adapter 'sql' added successfully."
    assert client.post("/v1/load_lora_adapter", json=load).status_code == 409
    inplace = load | {"load_inplace": True, "lora_path": str(root / "alice")}
    assert client.post("/v1/load_lora_adapter", json=inplace).status_code == 200
    assert [c["generation"] for c in client.get("/admin/adapters").json()["data"]] == [2]
    reply = client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    assert reply.text == "Success: LoRA adapter 'sql' removed successfully."
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"}).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc",
        "alice/../../outside",
        "link",
        "empty",
        "nowhere",
        ".",
        "",
        "a" * 65,
        "ALICE",
        "alice\x00",
        "b\u043eb",
    ],
)
def test_nothing_outside_the_root_is_loaded(client, serving, root, path):
    for reply in (
        client.post("/admin/adapters", json={"name": "x", "folder": path}),
        client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path}),
        client.post(
            "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": f"{root}/../outside"}
        ),
    ):
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["message"]
    assert serving.numbers == [] and client.get("/admin/adapters").json()["data"] == []


def test_the_log_says_what_was_loaded_and_what_was_refused(client, caplog):
    caplog.set_level(logging.INFO, "lorica.serve")
    card = client.post("/admin/adapters", json={"name": "x", "folder": "alice"}).json()
    line = f"tenant=ops adapter='x' folder='alice' digest={card['digest']} generation=1 "
    assert line in caplog.text
    client.post("/admin/adapters", json={"name": "y", "folder": "nowhere"})
    line = "adapter='y' folder='nowhere' invalid_adapter \"there is no adapter 'nowhere' in the"
    assert line in caplog.text
    client.delete("/admin/adapters/x")
    assert "adapter='x' freed=1000" in caplog.text


def test_words_for_what_cannot_be_loaded(client, root):
    outside = {"lora_name": "x", "lora_path": str(root.parent / "outside")}
    error = client.post("/v1/load_lora_adapter", json=outside).json()["error"]
    assert "only from the folder of --adapters" in error["message"]
    assert error["param"] == "lora_path"
    error = client.post("/admin/adapters", json={"name": "x", "folder": "nowhere"}).json()["error"]
    assert error["code"] == "invalid_adapter"
    error = client.post("/admin/adapters", json={"name": "x", "more": 1}).json()["error"]
    assert "more: the field is unknown; leave it out" in error["message"]


def test_without_a_root_nothing_is_loaded(serving):
    with TestClient(gate_of(serving, None), base_url="http://localhost", headers=HEADERS) as client:
        reply = client.post("/admin/adapters", json={"name": "alice"})
    assert reply.status_code == 400 and "--adapters FOLDER" in reply.json()["error"]["message"]


def test_warnings_are_for_the_operator_alone():
    """They name paths of the server."""
    card = ModelCard("alice", "base", "", 1, "failed", warnings=("/srv/alice is damaged",))
    assert "warnings" not in model_object(card)
    assert model_object(card, for_operator=True)["warnings"] == ("/srv/alice is damaged",)
