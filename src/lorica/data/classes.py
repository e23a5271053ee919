"""The classes of rows, and how the labels in a file name the classes that a model has already.

A label names a class by its name, by its name in other case, or by its number from 0. One of
these holds for all rows of a file, or none does: labels "0" and "cat" do not mix.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from lorica.errors import DataError, closest, listed

NUMBER = re.compile(r"-?\d{1,18}")


def class_name(label: object) -> str:
    """The class that a label names: its text, where blanks of any kind and number are one space."""
    return " ".join(str(label).split())


def class_names_fault(names: Sequence[object]) -> str | None:
    """Why a classifier's outputs cannot have these names; None: they can.

    Each is a text that is not empty, and no two are alike.
    """
    texts = [class_name(name) for name in names if isinstance(name, str)]
    if not names:
        return "there are none"
    if len(texts) < len(names) or "" in texts:
        return "a class has no name"
    twice = [name for name, count in Counter(texts).items() if count > 1]
    return f"several classes have the name {listed(twice)}" if twice else None


def match(found: Collection[str], known: list[str], *, all_numbers: bool) -> dict[str, str] | None:
    """Each label in `found` to the class in `known` that it names; None: some name none.

    all_numbers: numbers name classes only if every class occurs: rows of 0 and 1 are no rows of
        a base with five classes.
    """
    wanted = set(found)
    if wanted <= set(known):
        return {label: label for label in wanted}
    folded = {class_name(name).casefold(): name for name in known}
    lower = {label.casefold() for label in wanted}
    if lower <= set(folded) and len(folded) == len(known) and len(lower) == len(wanted):
        return {label: folded[label.casefold()] for label in wanted}
    numbers = {str(i): name for i, name in enumerate(known)}
    if wanted <= set(numbers) and (not all_numbers or len(wanted) == len(known)):
        return {label: numbers[label] for label in wanted}
    return None


def look_alikes(names: Collection[str]) -> list[str]:
    """A notice on the first two classes whose names differ only in what a reader hardly sees.

    That is case, the form of letters and digits (NFKC), or signs without a width.
    """
    seen: dict[str, str] = {}
    for name in names:
        signs = unicodedata.normalize("NFKC", name).casefold()
        shape = "".join(c for c in signs if unicodedata.category(c) != "Cf")
        if (other := seen.setdefault(unicodedata.normalize("NFKC", shape), name)) != name:
            pair = f"the classes {other!a} and {name!a} look alike, and are two classes"
            return [f"{pair}; write them alike if one is meant"]
    return []


def in_order(found: Collection[str]) -> list[str]:
    """Labels as new classes, sorted; numbers sort as numbers.

    Raises: DataError for a single class.
    """
    if len(found) < 2:
        raise DataError(
            f"all rows have the class {listed(found)}; there is nothing to tell apart.",
            fix="give rows of two classes at least",
        )
    numbers = all(NUMBER.fullmatch(name) for name in found)
    return sorted(found, key=lambda name: (int(name), name) if numbers else (0, name))


def unknown_classes(found: Collection[str], known: list[str]) -> DataError:
    strange = sorted(set(found) - set(known))
    return DataError(
        f"{len(strange)} classes in the rows are not those that the model knows.",
        unknown=listed(strange),
        known=listed(known, 12),
        closest=closest(strange[0], known),
        fix=f"rename them in the file, or write their numbers, 0 to {len(known) - 1}",
    )


def mapping_notice(classes: dict[str, str]) -> list[str]:
    """A notice on labels that are not written as the classes that they name."""
    other = [f"{label} is {name}" for label, name in sorted(classes.items()) if label != name]
    return [f"labels are read as the classes of the model: {listed(other, 8)}"] if other else []
