"""Import what only an extra of lorica installs."""

from importlib import import_module
from types import ModuleType

from lorica.errors import MissingError


def import_package(module: str, package: str, task: str, extra: str = "tasks") -> ModuleType:
    """The module. Raises: MissingError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingError(
            f"task {task} needs the package {package}: {error}.",
            fix=f'pip install "lorica[{extra}]"',
        ) from None
