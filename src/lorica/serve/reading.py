"""What the store asks about an adapter's folder: its content, and whether it can be served."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorica.errors import FileError
from lorica.formats.adapter_file import AdapterFile, read
from lorica.serve.generations import Generation
from lorica.serve.identity import bank_key


@dataclass(frozen=True)
class Findings:
    """notices: what could not be verified. notes: for a person, see ModelCard."""

    notices: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


class Reader:
    """Reads folders, and accepts every adapter that is whole."""

    def read(self, folder: Path) -> AdapterFile:
        """Raises: FileError if the folder is damaged."""
        return read(folder)

    def examine(self, file: AdapterFile) -> Findings:
        """Raises: LoricaError if the adapter cannot be served."""
        return Findings()


def read_again(reader: Reader, generation: Generation, condition: str | None) -> AdapterFile:
    """The adapter that `generation` was loaded with. Raises: FileError if its folder has another
    one now, or none."""
    file = reader.read(generation.folder)
    if bank_key(file, condition) != generation.key_of(condition):
        raise FileError(
            f"{generation.folder} holds another adapter than was loaded from it.",
            loaded=generation.digest,
            here=file.digest,
            fix="load it again",
        )
    return file
