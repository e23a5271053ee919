"""SIGHUP: read keys.yaml again while the server runs."""

from pathlib import Path

from lorica.errors import LoricaError, counted
from lorica.serve.auth import Access
from lorica.serve.engine import ServingEngine
from lorica.serve.keys_file import read_keys
from lorica.serve.log import log
from lorica.serve.names import base_name_of


class KeysReload:
    """Call it to take the keys and quotas that the file has now; running answers go on.

    keys: the file; None: there is none, and the call changes nothing. access: what is changed.
    A file with a mistake changes nothing either, and the log says why.
    """

    def __init__(self, base: str, keys: Path | None, access: Access, engine: ServingEngine):
        self._base_name, self._keys = base_name_of(base), keys
        self._access, self._engine = access, engine

    def __call__(self) -> None:
        if self._keys is None:
            log.info("SIGHUP: ignored, as there is no file of keys (--keys)")
            return
        try:
            access, notices = read_keys(self._keys, base_name=self._base_name)
        except (LoricaError, OSError) as error:
            log.error("SIGHUP: the keys stay as they were: %s", " ".join(str(error).split()))
            return
        self._access.replace(access)
        self._engine.set_quotas(access.quotas)
        tenants = counted(len(access.quotas), "tenant")
        log.info("SIGHUP: %s has been read again: %s", self._keys, tenants)
        for notice in notices:
            log.warning("%s: %s", self._keys, notice)
