"""The classes of labelled rows, and how labels match the classes of a trained classifier.

A label matches a class by its name, by its name in other case, or by its number from 0. All rows
of a file match in the same way: labels "0" and "cat" do not mix.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

from lorica.errors import DataError, closest, listed

NUMBER = re.compile(r"-?\d{1,18}")


def class_name(label: object) -> str:
    """The class that a label names: its text, with every run of white space as one space."""
    return " ".join(str(label).split())


def class_names_fault(names: Sequence[object]) -> str | None:
    """Why a classifier's outputs cannot have these names; None if they can.

    Every name must be a text that is not empty, and different from the others.
    """
    texts = [class_name(name) for name in names if isinstance(name, str)]
    if not names:
        return "there are none"
    if len(texts) < len(names) or "" in texts:
        return "a class has no name"
    twice = [name for name, count in Counter(texts).items() if count > 1]
    return f"several classes have the name {listed(twice)}" if twice else None


def match_labels(
    labels: Collection[str], known: list[str], *, all_numbers: bool
) -> dict[str, str] | None:
    """The class in `known` that each label matches; None if a label matches no class.

    all_numbers: numbers match only if every class occurs. Labels 0 and 1 do not match a base
        with five classes.
    """
    distinct = set(labels)
    if distinct <= set(known):
        return {label: label for label in distinct}
    folded = {class_name(name).casefold(): name for name in known}
    lower = {label.casefold() for label in distinct}
    if lower <= set(folded) and len(folded) == len(known) and len(lower) == len(distinct):
        return {label: folded[label.casefold()] for label in distinct}
    numbers = {str(i): name for i, name in enumerate(known)}
    if distinct <= set(numbers) and (not all_numbers or len(distinct) == len(known)):
        return {label: numbers[label] for label in distinct}
    return None


def similar_name_notices(names: Collection[str]) -> list[str]:
    """A notice on the first two classes whose names look the same.

    They differ only in case, compatibility characters (NFKC), or characters without a width.
    """
    seen: dict[str, str] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        visible = "".join(c for c in folded if unicodedata.category(c) != "Cf")
        if (other := seen.setdefault(unicodedata.normalize("NFKC", visible), name)) != name:
            pair = f"the classes {other!a} and {name!a} look alike, but are two classes"
            return [f"{pair}; if they are the same, give them the same name"]
    return []


def sort_classes(labels: Collection[str]) -> list[str]:
    """Labels as new classes, sorted; numbers sort as numbers.

    Raises: DataError for a single class.
    """
    if len(labels) < 2:
        raise DataError(
            f"all rows have the class {listed(labels)}; there is nothing to tell apart.",
            fix="give rows of two classes at least",
        )
    numbers = all(NUMBER.fullmatch(name) for name in labels)
    return sorted(labels, key=lambda name: (int(name), name) if numbers else (0, name))


def unknown_classes_error(labels: Collection[str], known: list[str]) -> DataError:
    unknown = sorted(set(labels) - set(known))
    return DataError(
        f"{len(unknown)} classes in the rows are not those that the model knows.",
        unknown=listed(unknown),
        known=listed(known, 12),
        closest=closest(unknown[0], known),
        fix=f"rename them in the file, or write their numbers, 0 to {len(known) - 1}",
    )


def mapping_notices(classes: dict[str, str]) -> list[str]:
    """A notice on labels that are written otherwise than the classes that they match."""
    other = [f"{label} is {name}" for label, name in sorted(classes.items()) if label != name]
    return [f"labels are read as the classes of the model: {listed(other, 8)}"] if other else []
