"""Who asks: API keys, the tenants that they belong to, and what a tenant may use.

A key is "lorica-" and 32 random bytes. The server knows its SHA-256 alone. A slow hash (scrypt) is
for passwords, which can be guessed; nobody can try 2**256 keys, so a plain hash is as safe, and
costs a request microseconds. `Access.authenticate` refuses what has not this form, so a password
whose hash is in the file is of no use. The prefix lets scanners of leaked secrets, and the messages
here, recognise a key.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorica.serve.quota import Quota
from lorica.serve.refusals import Unauthorized

PREFIX = "lorica-"
_BEARER = re.compile(rf"bearer +({PREFIX}[\w-]{{43}}) *", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """A customer: what it may use, and how much.

    adapters: names of those that it may use; None: all. uses_base: whether it may use the base,
    which is served as base_name. is_admin: whether it may load and unload adapters.
    """

    name: str
    base_name: str
    adapters: frozenset[str] | None = frozenset()
    uses_base: bool = False
    is_admin: bool = False
    quota: Quota = field(default_factory=Quota)

    def allows(self, model: str) -> bool:
        """Whether it may use a model: the base, an adapter, or an adapter's "name:condition"."""
        if model == self.base_name:
            return self.uses_base
        return self.adapters is None or model.partition(":")[0] in self.adapters


def local_tenant(base_name: str) -> Tenant:
    """The one tenant of a server without keys, which only this machine can reach."""
    return Tenant(name="local", base_name=base_name, adapters=None, uses_base=True, is_admin=True)


class Access:
    """Tells by the Authorization header of a request whose it is.

    tenants: by the SHA-256 of a key; a tenant may have several keys. Use `Access.local` for a
    server without keys.
    """

    def __init__(self, tenants: Mapping[bytes, Tenant]):
        self._tenants = dict(tenants)
        self._everyone: Tenant | None = None

    @classmethod
    def local(cls, base_name: str) -> "Access":
        """No keys: every request is one of the tenant "local", which may do everything."""
        access = cls({})
        access._everyone = local_tenant(base_name)
        return access

    @property
    def quotas(self) -> dict[str, Quota]:
        """By tenant, for the scheduler."""
        return {tenant.name: tenant.quota for tenant in self._tenants.values()}

    def replace(self, other: "Access") -> None:
        """Take the tenants of `other`, from the next request on."""
        self._tenants = other._tenants

    def adapters(self) -> dict[str, frozenset[str]]:
        """Names of adapters in the file, by tenant."""
        return {tenant.name: tenant.adapters or frozenset() for tenant in self._tenants.values()}

    def authenticate(self, header: str | None) -> Tenant:
        """The tenant of a request with this Authorization header.

        Every key is compared, each in constant time, so that the time says nothing about them.
        Raises: Unauthorized.
        """
        if self._everyone is not None:
            return self._everyone
        fix = 'send the header "Authorization: Bearer KEY"'
        if not header:
            raise Unauthorized("no API key was given.", fix=fix)
        key = _BEARER.fullmatch(header)
        digest = hash_key(key[1]) if key else b""
        owner = None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                owner = tenant
        if owner is None:
            raise Unauthorized("the API key is not one of this server's.", fix=fix)
        return owner


def make_key() -> str:
    """A new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    """The SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key.encode()).digest()


def redact(text: str) -> str:
    """A text without the keys in it, those that are cut off included."""
    return re.sub(rf"{PREFIX}[\w-]{{12,}}", f"{PREFIX}***", text)
