"""keys.yaml: all mistakes with their lines, and never a key."""

import logging
from pathlib import Path

import pytest

from lorica.errors import ConfigError, FileError
from lorica.serve.auth import hash_key, make_key
from lorica.serve.keys_file import new_entry, read_keys
from lorica.serve.quota import Quota

KEY, OTHER = make_key(), make_key()
HASH, OTHER_HASH = (f"sha256:{hash_key(key).hex()}" for key in (KEY, OTHER))


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def message_of(folder: Path, text: str) -> str:
    with pytest.raises((ConfigError, FileError)) as caught:
        read_keys(write(folder, text), base_name="bundled")
    return str(caught.value)


def test_a_whole_file(tmp_path):
    text = f"""
acme:
  keys: [{HASH}, {OTHER_HASH}]
  adapters: [alice, bob]
  requests_per_minute: 600
  tokens_per_minute: 100000
  streams: 8
operator:
  keys: ["sha256:{"0" * 64}"]
  adapters: "*"
  base: true
  admin: true
"""
    access, notices = read_keys(write(tmp_path, text), base_name="bundled")
    acme = access.authenticate(f"Bearer {KEY}")
    assert access.authenticate(f"Bearer {OTHER}") is acme
    assert acme.allows("alice") and not acme.allows("carol") and not acme.allows("bundled")
    assert not acme.is_admin
    quota = Quota(requests_per_minute=600, tokens_per_minute=100_000, streams=8)
    assert access.quotas == {"acme": quota, "operator": Quota()}
    assert not notices


def test_all_mistakes_are_reported_with_their_lines(tmp_path):
    message = message_of(
        tmp_path,
        f"""a:
  keys: [{HASH}, {HASH}]
  adapters: alice
  stream: 3
b:
  keys: [{OTHER}, 7, sha1:abc]
  streams: 0
  requests_per_minute: "60"
c:
  adapters: ["*", alice]
d: {HASH}
"no name":
  keys: [sha256:{"0" * 64}]
a:
  base: true
e:
  keys: []
  admin: yes
f:
  keys: [sha256:{"1" * 64}]
""",
    )
    path = tmp_path / "keys.yaml"
    for line in (
        f"{path}:2: a.keys[2] is the same key as a.keys[1]; make another",
        f'{path}:3: a.adapters is "alice"; it must be one of * or a list of text',
        f"{path}:4: a.stream is not a setting; closest streams",
        f"{path}:6: b.keys[1] must be sha256: and 64 hexadecimal digits; never a key",
        f"{path}:6: b.keys[2] must be sha256:",
        f"{path}:6: b.keys[3] must be sha256:",
        f"{path}:7: b.streams is 0; it must be a whole number (at least 1) or null",
        f'{path}:8: b.requests_per_minute is "60"; it must be a whole number',
        f"{path}:9: c.keys must be a list of hashes of keys, and not empty",
        f'{path}:10: c.adapters: "*" is all adapters: write it alone',
        f"{path}:11: d needs lines of its own below it",
        f"{path}:12: 'no name' is no name of a tenant; use letters",
        f"{path}:14: a is set twice; first in {path}:1: add the hash to the list `keys:`",
        f"{path}:17: e.keys must be a list of hashes of keys, and not empty",
        f'{path}:18: e.admin is "yes"; it must be true or false',
        f"{path}:19: f may use nothing: set adapters, base or admin",
    ):
        assert line in message, message
    assert message.startswith("17 settings are wrong:")
    assert "lorica key NAME" in message


def test_a_key_of_two_tenants_is_refused(tmp_path):
    entry = f"  keys: [{HASH}]\n  base: true\n"
    message = message_of(tmp_path, f"a:\n{entry}b:\n{entry}")
    assert f"{tmp_path}/keys.yaml:5: b.keys[1] is the same key as a.keys[1]" in message


CANARIES = [
    "a:\n  keys: [{key}]\n",
    "a:\n  keys: {key}\n  base: true\n",
    "a: {key}\n",
    "{key}: {key}\n",
    "{key}:\n  keys: [{hash}]\n  base: true\n",
    "{key}",
    "a:\n  {key}: 3\n",
    "a:\n  keys: [{hash}]\n  streams: {key}\n",
    "a:\n  keys: [{hash}]\n  adapters: {key}\n",
    "a:\n  keys: [{hash}]\n  adapters: [{key}, '*']\n",
    "a:\n  keys: [!{key} x]\n",
    "a:\n  keys: [*{key}]\n",
    "a:\n  keys: &{key} x: y: z\n",
    "a:\n  keys: [{key}\n",
    "a:\n  keys: '{key}\n",
    "a:\n  keys:\n  - {key}\n  - {key}\n  keys: [{key}]\n",
    "a:\n  {key}: 1\n  {key}: 2\n",
    "%{key}\n--- a\n",
    "a:\n  keys: [{hash}]\n  base: true\n  Bearer {key}: x\n",
    "a:\n  keys: [{hash}{key}]\n  base: true\n",
    "a:\n  keys: [{{{key}: {key}}}]\n",
]


@pytest.mark.parametrize("text", CANARIES)
def test_no_message_holds_a_key(tmp_path, text, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigError) as caught:
        path = write(tmp_path, text.format(key=KEY, hash=HASH))
        read_keys(path, base_name="bundled")
    error = caught.value
    shown = f"{error} {error!r} {error.facts} {caplog.text} {capsys.readouterr()}"
    secret = KEY.removeprefix("lorica-")
    assert not any(secret[i : i + 12] in shown for i in range(len(secret) - 11)), shown


def test_another_servers_key_where_a_hash_belongs_is_not_shown(tmp_path):
    for text in ("keys: [sk-canary]", "keys: sk-canary", "keys: {sk-canary: sk-canary}"):
        assert "canary" not in message_of(tmp_path, f"a:\n  base: true\n  {text}\n")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    """It must not open the server to all."""
    assert "has no keys" in message_of(tmp_path, text)


def test_what_is_no_file_of_keys(tmp_path):
    assert "there is no file" in message_of_path(tmp_path / "none.yaml")
    write(tmp_path, f"a:\n  keys: [{HASH}]\n  base: true\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "keys.yaml")
    assert "is a link" in message_of_path(link)
    assert "folder" in message_of_path(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(b"a:\n  \xff")
    assert "bad.yaml:2: this is not UTF-8" in message_of_path(tmp_path / "bad.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    assert "larger than" in message_of_path(tmp_path / "large.yaml")


def message_of_path(path: Path) -> str:
    with pytest.raises((ConfigError, FileError)) as caught:
        read_keys(path, base_name="bundled")
    return str(caught.value)


@pytest.mark.parametrize(
    ("mode", "can"), [(0o644, "read"), (0o640, "read"), (0o660, "change"), (0o602, "change")]
)
def test_a_file_that_others_can_open_has_a_notice(tmp_path, mode, can):
    path = write(tmp_path, f"a:\n  keys: [{HASH}]\n  base: true\n", mode)
    _, [notice] = read_keys(path, base_name="bundled")
    assert (
        notice == f"other users of this machine can {can} this file (mode {mode:o}); fix: chmod 600"
    )


@pytest.mark.parametrize(
    ("adapters", "base", "admin"),
    [(["alice", "bob"], False, False), (["*"], True, False), ([], False, True)],
)
def test_lines_that_are_made_are_read(tmp_path, adapters, base, admin):
    key, lines = new_entry("acme-2.x", adapters=adapters, base=base, admin=admin)
    assert key not in lines and key.removeprefix("lorica-") not in lines
    more = new_entry("other", adapters=[], base=True, admin=False)[1]
    access, _ = read_keys(write(tmp_path, lines + more), base_name="bundled")
    tenant = access.authenticate(f"Bearer {key}")
    assert tenant.name == "acme-2.x"
    assert (tenant.allows("bundled"), tenant.is_admin) == (base, admin)
    assert tenant.allows("alice") == bool(adapters) and tenant.allows("x") == (adapters == ["*"])


@pytest.mark.parametrize(
    ("name", "adapters", "problem"),
    [
        ("a b", ["x"], "no name of a tenant"),
        pytest.param(KEY, ["x"], "no name of a tenant", id="a key"),
        ("a", [], "may use nothing"),
        ("a", ["*", "x"], "stands alone"),
    ],
)
def test_lines_that_would_not_be_read_are_not_made(name, adapters, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        new_entry(name, adapters=adapters, base=False, admin=False)
    assert KEY not in str(caught.value)
