"""Which cases of a test run, and how long: a few in the fast suite, more in the slow one, all with
`make test-full`.
"""

import os
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
IS_FULL = bool(os.environ.get("LORICA_FULL"))


def at_length(full: T, usual: T) -> T:
    """`full` with `make test-full`, which takes hours: a search for what seldom fails."""
    return full if IS_FULL else usual


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list:
    """`cases` for parametrize, those that are not in `quick` marked slow. A tuple is a row."""
    cases = list(cases)
    if unknown := [case for case in quick if case not in cases]:
        raise ValueError(f"there are no cases {unknown}: have {cases}")
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in quick else pytest.mark.slow,
        )
        for case in cases
    ]
