"""Text that others wrote (names, prompts, answers, notices), fit to be read on the page.

Jinja escapes markup. Here characters that would hide or reorder other text are written out.
"""

import re

HIDING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls except tab and line feed, directional marks, what has no width, lone surrogates. The
joiners U+200C and U+200D stay: Persian, Indic scripts and emoji are written with them."""
MAX_NAME = 120


def visible(text: str) -> str:
    """`text` with characters that hide or reorder others written as \\u{...}."""
    return HIDING.sub(lambda match: f"\\u{{{ord(match[0]):x}}}", text)


def visible_name(text: str) -> str:
    """A name on one line, cut to MAX_NAME characters."""
    return shortened(visible(text).replace("\n", "\\n").replace("\t", "\\t"), MAX_NAME)


def shortened(text: str, most: int) -> str:
    """At most `most` characters, and how many are left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text) - most:,} more characters)"
