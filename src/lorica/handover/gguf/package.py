"""Import the gguf package, which only the extra `gguf` installs."""

from typing import Any

from lorica.errors import MissingError


def gguf_package() -> Any:
    """The module `gguf`. Raises: MissingError with the command that installs it."""
    try:
        import gguf
    except ImportError as error:
        raise MissingError(
            f"writing GGUF files needs the package gguf: {error}.",
            fix='pip install "lorica[gguf]"',
        ) from None
    return gguf
