"""Versions, asked of the installed packages without importing them."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Of Python and of the packages that can change a result; asked without importing them."""
    found = {"python": platform.python_version()}
    for name in ("lorica", "torch", "transformers", "tokenizers", "accelerate", "safetensors"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
