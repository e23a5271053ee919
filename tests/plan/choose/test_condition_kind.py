"""The kind of a condition follows from the conditions of the rows."""

import pytest

from lorica.plan.choose.condition_kind import condition_kind


@pytest.mark.parametrize(
    ("conditions", "kind"),
    [
        (["en-de", "de-en", "en-fr"], "pair"),
        (["ticket-json", "story-end"], "task"),  # no name occurs twice
        (["summary", "title"], "task"),
        (["user-1", "user-2", "user-3"], "task"),
        (["[0.1, 0.2]", "[0.3, 0.4]"], "embedding"),
        (["Translate to plain English", "Write it as a poem please"], "text"),
    ],
)
def test_the_kind(conditions, kind):
    assert condition_kind(conditions).value == kind
