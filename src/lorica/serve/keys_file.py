"""Read keys.yaml: the tenants of a server, the hashes of their keys, and what they may use.

    acme:
      keys: ["sha256:..."]            # of one key, or of two while one replaces the other
      adapters: [alice, bob]          # or "*": all
      base: true                      # may use the base without an adapter; false if left out
      requests_per_minute: 600        # limits; none if left out
      tokens_per_minute: 100000
      streams: 8
      admin: true                     # may load and unload adapters; false if left out

`lorica key acme --adapter alice --base >> keys.yaml` makes a key and writes such lines. All
mistakes are reported at once, with their lines. No message shows what is written where a key
belongs: it may be the key itself.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorica import plain_files
from lorica.errors import ConfigError, LoricaError
from lorica.recipe.settings import Mistake, Settings, raise_mistakes
from lorica.recipe.validate import validate_settings
from lorica.recipe.yaml_file import MAX_BYTES, parse_yaml, to_yaml
from lorica.serve.auth import Access, Tenant, hash_key, make_key, redact
from lorica.serve.quota import Quota

NAMES = "use letters, digits and ._- only, at most 64, and a letter or digit first"
FIX = "`lorica key NAME` prints lines for this file"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_Positive = Annotated[int, Field(ge=1)] | None


class _Entry(BaseModel):
    """What a tenant may use. Its keys are checked apart: no message may show them."""

    model_config = ConfigDict(extra="forbid")

    adapters: Literal["*"] | list[str] = []
    base: bool = False
    requests_per_minute: _Positive = None
    tokens_per_minute: _Positive = None
    streams: _Positive = None
    admin: bool = False


def read_keys(path: Path, *, base_name: str) -> tuple[Access, list[str]]:
    """The tenants of a file, and notices about it. base_name: under which the base is served.

    Raises: ConfigError with every mistake; FileError if it is a link, or no regular file.
    """
    text, notices = _read(path)
    try:
        settings = parse_yaml(path, text, fix=FIX)
        tenants, mistakes = _parse(settings, base_name)
        if not mistakes and not tenants:
            raise ConfigError(f"{path} has no keys.", fix=FIX)
        if mistakes:
            raise_mistakes(mistakes, settings, fix=FIX)
    except LoricaError as error:
        facts = {name: redact(str(fact)) for name, fact in error.facts.items()}
        raise type(error)(redact(error.what), fix=error.fix, **facts) from None
    return Access(tenants), notices


def _read(path: Path) -> tuple[str, list[str]]:
    """The text, and a notice if other users of the machine can read or change the file."""
    if plain_files.kind_of(path) is None:
        fix = "make it: lorica key NAME --adapter NAME > keys.yaml"
        raise ConfigError(f"there is no file {path}.", fix=fix)
    with plain_files.open_file(path) as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes.", fix=FIX)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: this is not UTF-8 text.", fix="save it as UTF-8"
        ) from None
    can = "change" if mode & 0o022 else "read"
    notice = f"other users of this machine can {can} this file (mode {mode:o}); fix: chmod 600"
    return text, [notice] if mode & 0o066 else []


def _parse(settings: Settings, base_name: str) -> tuple[dict[bytes, Tenant], list[Mistake]]:
    """Tenants by the hash of a key, and all mistakes."""
    mistakes = [_told_apart(mistake) for mistake in settings.mistakes]
    tenants: dict[bytes, Tenant] = {}
    places: dict[bytes, str] = {}
    for name, data in settings.data.items():
        tenant, wrong = _parse_tenant(name, data, settings, base_name)
        hashes, wrong_keys = _parse_keys(name, data)
        mistakes += [*wrong, *wrong_keys]
        for number, digest in hashes:
            if digest in places:
                what = f"{name}.keys[{number}] is the same key as {places[digest]}; make another"
                mistakes.append(Mistake((name, "keys"), what))
            places.setdefault(digest, f"{name}.keys[{number}]")
            if tenant:
                tenants[digest] = tenant
    return tenants, mistakes


def _told_apart(mistake: Mistake) -> Mistake:
    """A tenant that is in the file twice needs no second entry for another key."""
    if not mistake.what.startswith(f"{mistake.path[0]} is set twice"):
        return mistake
    what = f"{mistake.what}: add the hash to the list `keys:` of the first"
    return replace(mistake, what=what)


def _parse_tenant(
    name: str, data: Any, settings: Settings, base_name: str
) -> tuple[Tenant | None, list[Mistake]]:
    mistakes = []
    if not _is_name(name):
        what = f"{name!r:.80} is no name of a tenant; {NAMES}"
        mistakes.append(Mistake((name,), what))
    if not isinstance(data, dict):
        return None, [*mistakes, Mistake((name,), f"{name:.80} needs lines of its own below it")]
    own = Settings({key: value for key, value in data.items() if key != "keys"})
    own.places = {at[1:]: place for at, place in settings.places.items() if at[:1] == (name,)}
    entry, wrong = validate_settings(_Entry, own)
    mistakes += [Mistake((name, *m.path), f"{name}.{m.what}") for m in wrong]
    if entry is None:
        return None, mistakes
    if "*" in entry.adapters and len(entry.adapters) > 1:
        what = f'{name}.adapters: "*" is all adapters: write it alone'
        mistakes.append(Mistake((name, "adapters"), what))
    if not (entry.adapters or entry.base or entry.admin):
        what = f"{name} may use nothing: set adapters, base or admin"
        mistakes.append(Mistake((name,), what))
    tenant = Tenant(
        name=name,
        base_name=base_name,
        adapters=None if "*" in entry.adapters else frozenset(entry.adapters),
        uses_base=entry.base,
        is_admin=entry.admin,
        quota=Quota(
            requests_per_minute=entry.requests_per_minute,
            tokens_per_minute=entry.tokens_per_minute,
            streams=entry.streams,
        ),
    )
    return tenant, mistakes


def _is_name(name: str) -> bool:
    """Whether a tenant can have this name. A key cannot be one: names are in logs."""
    return bool(_NAME.fullmatch(name)) and redact(name) == name


def _parse_keys(name: str, data: Any) -> tuple[list[tuple[int, bytes]], list[Mistake]]:
    """(number from 1, hash) of each key of a tenant, and mistakes that show none of them."""
    match data:
        case {"keys": [_, *_] as keys}:
            pass
        case dict():
            what = f"{name}.keys must be a list of hashes of keys, and not empty"
            return [], [Mistake((name, "keys"), what)]
        case _:
            return [], []
    hashes, mistakes = [], []
    for number, key in enumerate(keys, start=1):
        if isinstance(key, str) and (match := _HASH.fullmatch(key)):
            hashes.append((number, bytes.fromhex(match[1])))
        else:
            what = f"{name}.keys[{number}] must be sha256: and 64 hexadecimal digits; never a key"
            mistakes.append(Mistake((name, "keys"), what))
    return hashes, mistakes


def new_entry(name: str, *, adapters: Sequence[str], base: bool, admin: bool) -> tuple[str, str]:
    """(a new key, the lines of keys.yaml for a tenant that has it). adapters: ["*"]: all.

    Raises: ConfigError.
    """
    if not _is_name(name):
        raise ConfigError(f"{redact(name)!r:.80} is no name of a tenant.", fix=NAMES)
    if "*" in adapters and len(adapters) > 1:
        raise ConfigError('"*" is all adapters: it stands alone.', fix='--adapter "*"')
    if not (adapters or base or admin):
        fix = 'add --adapter NAME ("*": all), --base or --admin'
        raise ConfigError(f"{name} may use nothing.", fix=fix)
    key = make_key()
    entry: dict[str, Any] = {"keys": [f"sha256:{hash_key(key).hex()}"]}
    if adapters:
        entry["adapters"] = "*" if "*" in adapters else list(adapters)
    entry |= {"base": True} if base else {}
    entry |= {"admin": True} if admin else {}
    return key, to_yaml({name: entry})
