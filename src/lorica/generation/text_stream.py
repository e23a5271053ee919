"""The text of a growing row of tokens, piece by piece, each as soon as no later token changes it.

Only the last few tokens are decoded at each step. A character whose bytes are spread over tokens is
held back until it is complete, and so is what may become a stop string. Broken bytes, which never
become a character, are given after MAX_PENDING tokens as U+FFFD.
"""

from collections import deque
from collections.abc import Callable, Sequence

CONTEXT = 8
"""Tokens of the prompt that the first piece is decoded after: some tokenizers write a token
differently at the start of a text."""
MAX_PENDING = 16
"""Tokens without a complete character after which their bytes count as broken; a character has at
most four bytes, and a token at least one."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
Decode = Callable[[list[int]], str]


class TextStream:
    """Feed it every new token with `push`, then call `end`; `take` gives the text since last time.

    decode: token ids to text. prompt: ids before the new tokens. strings: the text ends before the
        first of them. Stop tokens must not be fed.
    has_stopped: a stop string was completed. final_tokens: how many of the tokens, from the first
        one, have their whole text in what was given so far.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int], strings: Sequence[str] = ()):
        self._decode, self._strings = decode, strings
        self._tokens = _context(decode, prompt)  # the window that is decoded
        self._before = decode(self._tokens)  # what of its text is given already
        self._fed = 0  # tokens since the window's last complete character
        self._held = ""  # complete text that may become a stop string
        self._ready: list[str] = []
        self._length = 0  # characters of the complete text, with what is held or cut off
        self._given = 0  # and without
        self._ends: deque[int] = deque()  # where the text of each later token ends
        self.final_tokens = 0
        self.has_stopped = False

    def push(self, token: int) -> None:
        if self.has_stopped:
            return
        self._tokens.append(token)
        self._fed += 1
        text = self._decode(self._tokens)
        if text.endswith(BROKEN) and self._fed < MAX_PENDING:
            stable = text.rstrip(BROKEN)
            if len(stable) > len(self._before) and stable.startswith(self._before):
                self._give(stable[len(self._before) :])
                self._before = stable
            return
        self._complete(text)

    def end(self) -> None:
        """No more tokens follow: what is held back is final."""
        if self._fed and not self.has_stopped:
            self._complete(self._decode(self._tokens))
        self._release(self._held)
        self._held = ""

    def take(self) -> str:
        """The text that became final since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _complete(self, text: str) -> None:
        """`text` of the window is final; the next window starts with the tokens just fed."""
        if text.startswith(self._before):
            self._give(text[len(self._before) :])
        else:  # decoded otherwise than its beginning was: the new tokens by themselves
            self._give(self._decode(self._tokens[-self._fed :]))
        self._ends.extend([self._length] * self._fed)
        self._count_final()
        self._tokens = self._tokens[-self._fed :]
        self._before, self._fed = self._decode(self._tokens), 0

    def _release(self, text: str) -> None:
        self._ready.append(text)
        self._given += len(text)
        self._count_final()

    def _count_final(self) -> None:
        while self._ends and self._ends[0] <= self._given:
            self._ends.popleft()
            self.final_tokens += 1

    def _give(self, text: str) -> None:
        self._length += len(text)
        if not self._strings:
            self._release(text)
            return
        text = self._held + text
        starts = [at for stop in self._strings if (at := text.find(stop)) >= 0]
        if starts:
            self.has_stopped, keep = True, min(starts)
        else:
            keep = len(text) - max(_overlap(text, stop) for stop in self._strings)
        self._release(text[:keep])
        self._held = "" if starts else text[keep:]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


def _context(decode: Decode, prompt: Sequence[int]) -> list[int]:
    """The last tokens of the prompt, from where a character begins."""
    size = CONTEXT
    while size < len(prompt) and decode(list(prompt[-size:])).startswith(BROKEN):
        size *= 2
    return list(prompt[-size:])
