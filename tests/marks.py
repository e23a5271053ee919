"""Marks for the cases of a test: a few stand for all in the fast suite; the slow suite has them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


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
