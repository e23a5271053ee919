"""Render chat templates with jinja2's ImmutableSandboxedEnvironment, in a process with limits.

A chat template is a program that comes with a downloaded model. jinja2's sandbox keeps it from
Python's attributes and from mutating its input. It cannot stop a template that compares nested
lists for hours or fills the memory: one `==` is one call into C, which no signal handler of the
same process interrupts. So this file is also a script. `template_worker.py` starts it with plain
Python (only jinja2 is on its path), sends it requests, and kills it when it is silent for too
long. The kernel ends it after SECONDS of CPU time for one rendering, or beyond MEMORY bytes.

Protocol: lines of JSON on stdin and stdout.

    request                                            answer
    {"compile": source}                                {"template": n, "variables": [...], ...}
    {"template": n, "shared": {...}, "jobs": [...]}    a line a job: {"text": ..., "turns": [], ...}

An answer may also be {"refused": reason} or {"overrun": reason}. An empty line says that the
process is still at work.
"""

import json
import re
import resource
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5  # of processor time for one rendering
MEMORY = 1 << 30  # bytes of address space, the interpreter's 30 MB included
LARGEST = 32_000_000  # characters of one text
AROUND = 16  # characters shown on either side of a difference
# What {% generation %} encloses is marked with characters that no row can know.
_NONCE = secrets.token_hex(8)
MARK_START, MARK_END = f"\ue0f0{_NONCE}\ue0f1", f"\ue0f1{_NONCE}\ue0f0"
MARKS = re.compile(f"{MARK_START}|{MARK_END}")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant writes, marked in the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return MARK_START + caller() + MARK_END


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates, without random text."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        self.filters["tojson"] = _tojson
        del self.filters["random"], self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise, "strftime_now": self._now}
        self.dated = False

    def _now(self, form: str) -> str:
        self.dated = True
        return datetime.now().strftime(form)


class JsonDict(dict):
    """A mapping that a template prints as JSON, whether it asks for an object or for its text.

    Some templates write `arguments | tojson`, others `arguments` or `'...' + arguments`.
    """

    def __init__(self, items: dict[str, Any], text: str | None = None):
        super().__init__(items)
        self._text = text

    def __str__(self) -> str:
        return _tojson(self) if self._text is None else self._text

    __repr__ = __str__

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


class JsonList(list):
    def __str__(self) -> str:
        return _tojson(self)

    __repr__ = __str__


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands, without jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def printed_as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return JsonDict({key: printed_as_json(item) for key, item in value.items()})
    return JsonList(map(printed_as_json, value)) if isinstance(value, list) else value


def _call(call: Any) -> Any:
    """A tool call whose arguments serve as an object and as text, however the row gave them."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return JsonDict(call | {"function": _call(call["function"])})
    arguments, text = call.get("arguments"), None
    if isinstance(arguments, str):
        try:
            arguments, text = json.loads(arguments), arguments
        except (ValueError, RecursionError):
            return JsonDict(call)
    if isinstance(arguments, dict):
        items = {key: printed_as_json(item) for key, item in arguments.items()}
        return JsonDict(call | {"arguments": JsonDict(items, text)})
    return JsonDict(call)


def _with_calls(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return message | {"tool_calls": JsonList(map(_call, calls))} if calls else message


def _without_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and what the template marks as written by the assistant: (start, end)."""
    pieces, turns, length, last, start = [], [], 0, 0, 0
    for mark in MARKS.finditer(text):
        pieces.append(text[last : mark.start()])
        length += len(pieces[-1])
        last = mark.end()
        if mark.group() == MARK_START:
            start = length
        else:
            turns.append((start, length))
    return "".join([*pieces, text[last:]]), turns


def common_length(one: str, other: str) -> int:
    """How many characters the two begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Server:
    """The worker's side of the pipes."""

    def __init__(self, answers: BinaryIO, seconds: int):
        self._sandbox, self._answers, self._seconds = Sandbox(), answers, seconds
        self._templates: list[jinja2.Template] = []
        self._last = time.monotonic()
        self._until = 0

    def serve(self, requests: BinaryIO) -> None:
        for line in requests:
            self._limit()
            request = json.loads(line)
            if "compile" in request:
                self._answer(self._guarded(self._compile, request["compile"]))
                continue
            template = self._templates[request["template"]]
            for job in request["jobs"]:
                self._answer(self._guarded(self._job, template, request["shared"], job))

    def _guarded(self, work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        try:
            return work(*given)
        except (RecursionError, MemoryError) as error:
            return {"overrun": f"it ends in a {type(error).__name__}"}
        except Exception as error:  # a program that we did not write may raise anything
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            why = f"{kind}{error}".strip().partition("\n")[0][:500]
            return {"refused": why, "line": getattr(error, "lineno", None)}

    def _compile(self, source: str) -> dict[str, Any]:
        tree = self._sandbox.parse(source)
        self._templates.append(self._sandbox.from_string(source))
        words = {c.value for c in tree.find_all(nodes.Const) if isinstance(c.value, str)}
        return {
            "template": len(self._templates) - 1,
            "marks": bool(re.search(r"\{%[-+]?\s*generation\b", source)),
            "variables": sorted(meta.find_undeclared_variables(tree)),
            "words": sorted(word for word in words if len(word) < 40),
        }

    def _job(
        self, template: jinja2.Template, shared: dict[str, Any], job: dict[str, Any]
    ) -> dict[str, Any]:
        """Render the job's variables; and of each cut, how far its text is that of the whole.

        A cut is (number of messages, whether the prompt for generation follows), and becomes
        (its length, characters in common with the whole text, its text around the difference).
        """
        given = shared | job["given"]
        if "messages" in given:
            given["messages"] = [_with_calls(message) for message in given["messages"]]
        self._sandbox.dated = False
        text, turns = self._render(template, given)
        cuts = []
        for upto, prompt in job.get("cuts", ()):
            part = {"messages": given["messages"][:upto], "add_generation_prompt": prompt}
            other, _ = self._render(template, given | part)
            common = common_length(text, other)
            near = other[max(common - AROUND, 0) : common + AROUND]
            cuts.append((len(other), common, near if common < len(other) else ""))
        return {"text": text, "turns": turns, "cuts": cuts, "dated": self._sandbox.dated}

    def _render(
        self, template: jinja2.Template, given: dict[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        self._limit()
        text = template.render(given)
        if len(text) > LARGEST:
            raise MemoryError
        return _without_marks(text)

    def _limit(self) -> None:
        """Let the kernel end this process if what follows takes too much processor time."""
        until = int(time.process_time()) + self._seconds + 1
        if until != self._until:
            self._until = until
            _limit_to(resource.RLIMIT_CPU, until)
        if time.monotonic() > self._last + 1:  # the parent's patience begins anew
            self._write(b"")

    def _answer(self, answer: dict[str, Any]) -> None:
        self._write(json.dumps(answer).encode())

    def _write(self, line: bytes) -> None:
        self._answers.write(line + b"\n")
        self._answers.flush()
        self._last = time.monotonic()


def _limit_to(kind: int, value: int) -> None:
    """Lower the soft limit of this process; the hard one stays as the system has it."""
    _, hard = resource.getrlimit(kind)
    with suppress(ValueError, OSError):  # a system without this limit; its parent has a clock
        resource.setrlimit(kind, (value if hard < 0 else min(value, hard), hard))


def main(seconds: int, memory: int) -> None:
    _limit_to(resource.RLIMIT_AS, memory)
    _limit_to(resource.RLIMIT_CORE, 0)
    Server(sys.stdout.buffer, seconds).serve(sys.stdin.buffer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
