"""Keys and tenants: who is let in, what each may use, and that no key is ever written."""

import hmac

import pytest

from lorica.serve import auth
from lorica.serve.auth import Access, Tenant, hash_key, make_key, redact
from lorica.serve.quota import Quota
from lorica.serve.refusals import Unauthorized

ACME = Tenant(name="acme", base_name="bundled", adapters=frozenset({"alice", "bob"}))
ROOT = Tenant(name="root", base_name="bundled", is_admin=True, quota=Quota(streams=2))


@pytest.fixture(scope="module")
def keys() -> list[str]:
    return [make_key() for _ in range(3)]


@pytest.fixture(scope="module")
def access(keys) -> Access:
    return Access(dict(zip(map(hash_key, keys), (ACME, ACME, ROOT), strict=True)))


def test_each_key_is_its_tenants(access, keys):
    assert [access.authenticate(f"Bearer {key}") for key in keys] == [ACME, ACME, ROOT]
    assert access.authenticate(f"bearer  {keys[2]} ") is ROOT, "the scheme's case is free"
    assert access.quotas == {"acme": Quota(), "root": Quota(streams=2)}


def test_every_key_is_new_and_of_32_random_bytes(keys):
    assert len({*keys, *(make_key() for _ in range(1000))}) == 1003
    assert {len(key) for key in keys} == {len("lorica-") + 43}


@pytest.mark.parametrize(
    "header",
    [
        "Bearer {}x",
        "Bearer {0} {0}",
        "Bearer {0},Bearer {0}",
        "Basic {}",
        "{}",
        "Bearer {}\n",
        "Bearer{}",
        "Bearer \u0661{}",
        "Bearer",
        "Bearer ",
        "x" * 100_000,
    ],
)
def test_a_wrong_header_is_refused_without_its_words(access, keys, header):
    with pytest.raises(Unauthorized) as caught:
        access.authenticate(header.format(keys[0]))
    shown = f"{caught.value} {caught.value!r} {caught.value.facts}"
    assert keys[0][7:20] not in shown and "xxxx" not in shown
    assert caught.value.status == 401


@pytest.mark.parametrize("header", [None, ""])
def test_no_key_is_refused(access, header):
    with pytest.raises(Unauthorized, match="no API key was given"):
        access.authenticate(header)


def test_a_key_of_nobody_is_refused(access):
    with pytest.raises(Unauthorized, match="not one of this server's"):
        access.authenticate(f"Bearer {make_key()}")
    with pytest.raises(Unauthorized):
        Access({}).authenticate(f"Bearer {make_key()}")


def test_a_password_is_refused_though_its_hash_is_in_the_file():
    """A plain hash protects 32 random bytes, not what can be guessed."""
    access = Access({hash_key("hunter2"): ACME})
    with pytest.raises(Unauthorized):
        access.authenticate("Bearer hunter2")


@pytest.mark.parametrize("number", [0, 2, None])
def test_all_keys_are_compared_whichever_is_given(access, keys, monkeypatch, number):
    """The time must not say where in the file a key is, or whether it is there."""
    compared = []

    def compare(known, given):
        compared.append(known)
        return hmac.compare_digest(known, given)

    monkeypatch.setattr(auth, "hmac", type("spy", (), {"compare_digest": staticmethod(compare)}))
    try:
        access.authenticate(f"Bearer {make_key() if number is None else keys[number]}")
    except Unauthorized:
        assert number is None
    assert compared == [hash_key(key) for key in keys]


def test_a_tenant_uses_its_adapters_and_nothing_else():
    allowed = {m for m in ("alice", "alice:ve-ol", "bob", "al", "bundled", "") if ACME.allows(m)}
    assert allowed == {"alice", "alice:ve-ol", "bob"}


def test_all_adapters_are_not_the_base():
    everything = Tenant(name="a", base_name="org/base:v1", adapters=None)
    assert everything.allows("alice") and not everything.allows("org/base:v1")
    with_base = Tenant(name="a", base_name="org/base:v1", uses_base=True)
    assert with_base.allows("org/base:v1") and not with_base.allows("alice")
    assert not with_base.allows("org/base")


@pytest.mark.parametrize("header", [None, "Bearer anything"])
def test_without_keys_everything_is_local(header):
    tenant = Access.local("bundled").authenticate(header)
    assert tenant.name == "local" and tenant.is_admin
    assert tenant.allows("bundled") and tenant.allows("alice")


def test_no_repr_has_a_key_or_its_hash(access, keys):
    shown = f"{access!r} {access} {ACME!r} {ROOT!r} {access.quotas}"
    for key in keys:
        assert (
            key not in shown
            and hash_key(key).hex() not in shown
            and str(hash_key(key)) not in shown
        )


def test_keys_are_redacted_wherever_they_are(keys):
    text = redact(f"in {keys[0]!r} and {keys[1][:30]}..., lorica-3 stays")
    assert text == "in 'lorica-***' and lorica-***..., lorica-3 stays"
