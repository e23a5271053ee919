"""SIGHUP: what keys.yaml has now is what holds."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from lorica.serve.keys_file import new_entry, read_keys
from lorica.serve.keys_reload import KeysReload
from lorica.serve.quota import Quota
from lorica.serve.refusals import TooManyRequests, Unauthorized
from lorica.serve.scheduler import Scheduler


class Engine:
    """Its scheduler, with the quotas of the last reload."""

    def __init__(self, quotas: Mapping[str, Quota]):
        self.scheduler = Scheduler(
            clock=lambda: 0.0, max_queued=99, max_queued_per_tenant=99, quotas=quotas
        )

    def set_quotas(self, quotas: Mapping[str, Quota]) -> None:
        self.scheduler.set_quotas(quotas)


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def start(keys: Path):
    access, _ = read_keys(keys, base_name="bundled")
    engine = Engine(access.quotas)
    return access, engine, KeysReload("bundled", keys, access, engine)


def test_new_revoked_and_changed_keys(keys, caplog):
    caplog.set_level(logging.INFO, "lorica.serve")
    old, old_lines = new_entry("acme", adapters=["alice"], base=False, admin=False)
    new, new_lines = new_entry("newcomer", adapters=["bob"], base=False, admin=False)
    write(keys, old_lines)
    access, engine, reload = start(keys)
    running = engine.scheduler.submit("acme", 1, 1)
    write(keys, new_lines + old_lines.replace("alice", "bob") + "  requests_per_minute: 1\n")
    reload()
    assert access.authenticate(f"Bearer {new}").name == "newcomer"
    assert access.authenticate(f"Bearer {old}").allows("bob")
    with pytest.raises(TooManyRequests, match="1 request per minute"):
        engine.scheduler.submit("acme", 1, 1)
    assert engine.scheduler.admit(1) == [running]
    write(keys, new_lines)
    reload()
    with pytest.raises(Unauthorized):
        access.authenticate(f"Bearer {old}")
    engine.scheduler.submit("acme", 1, 1)  # the quota went with the tenant
    assert "read again: 1 tenant" in caplog.text


@pytest.mark.parametrize("text", ["acme: [", "acme:\n  keys: [x]\n", ""])
def test_a_bad_file_leaves_the_keys_as_they_were(keys, caplog, text):
    key, lines = new_entry("acme", adapters=["alice"], base=False, admin=False)
    write(keys, lines)
    access, _, reload = start(keys)
    write(keys, text)
    reload()
    assert access.authenticate(f"Bearer {key}").name == "acme"
    [message] = [record.getMessage() for record in caplog.records]
    assert "SIGHUP: the keys stay as they were" in message and str(keys) in message
    assert "\n" not in message
    keys.unlink()
    reload()
    assert access.authenticate(f"Bearer {key}").name == "acme"
