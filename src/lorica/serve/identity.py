"""The key of an adapter in the bank: its content, never its name or its path.

Whoever takes a name for an adapter answers one customer with the weights of another as soon as a
name is used again.
"""

import hashlib

from lorica.formats.adapter_file import AdapterFile


def bank_key(file: AdapterFile, condition: str | None = None) -> str:
    """The key of `file`, of one of its conditions if it has any: equal for equal content alone.

    The seed counts too: VeRA without saved projections draws them from it.
    """
    return _digest("adapter", file.digest, str(file.spec.seed), condition)


def _digest(*fields: str | None) -> str:
    """sha256 of fields, each with its length, so that no two lists of fields are one text."""
    sha = hashlib.sha256()
    for field in fields:
        data = b"" if field is None else field.encode()
        sha.update(b"-" if field is None else b"+")
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()
