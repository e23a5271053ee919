"""The versions of the packages that can change a result, from their metadata."""

import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """The versions of Python and of these packages, which are not imported."""
    return dict(_installed())


@cache  # the metadata of a package takes milliseconds to parse
def _installed() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in ("lorica", "torch", "transformers", "tokenizers", "accelerate", "safetensors"):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
