"""Import what only the extra `tasks` installs."""

from importlib import import_module
from types import ModuleType

from lorica.errors import MissingError


def import_package(module: str, package: str, task: str) -> ModuleType:
    """The module. Raises: MissingError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingError(
            f"task {task} needs the package {package}: {error}.",
            fix='pip install "lorica[tasks]"',
        ) from None
