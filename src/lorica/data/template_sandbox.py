"""Render chat templates with jinja2's ImmutableSandboxedEnvironment, in a process with limits.

A chat template is a program that comes with a downloaded model. jinja2's sandbox keeps it from
Python's attributes and from changing its input. It cannot stop a comparison of nested lists that
takes hours, or text that fills the memory: one `==` is one call into C. So `template_worker.py`
runs this file as a script in plain Python, where only jinja2 is installed, and kills it when it
is silent for too long. The kernel ends it after SECONDS of CPU time in one rendering, or above
MEMORY bytes.

Requests and answers are lines of JSON. An answer may also be {"refused": reason} or {"overrun":
reason}; an empty line says that the process is still at work.

    {"compile": source}                                {"template": n, "variables": [...], ...}
    {"template": n, "shared": {...}, "jobs": [...]}    a line a job: {"text": ..., "turns": [], ...}
"""

import json
import re
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5  # of CPU time for one rendering
MEMORY = 1 << 30  # bytes of address space, the interpreter's 30 MB included
MAX_CHARACTERS = 32_000_000  # of one text
CONTEXT = 16  # characters shown on either side of a difference
# {% generation %} blocks are marked with a random text that no row can contain.
_NONCE = secrets.token_hex(8)
MARK_START, MARK_END = f"\ue0f0{_NONCE}\ue0f1", f"\ue0f1{_NONCE}\ue0f0"
MARKS = re.compile(f"{MARK_START}|{MARK_END}")


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return MARK_START + caller() + MARK_END


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, set up as transformers sets it up, without its random functions.

    dated: a template asked for the date since this was last set to False.
    """

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
    """A dict that prints as JSON, so that tool calls come out right in any template.

    Some templates write `arguments | tojson`, others `arguments` or `'...' + arguments`.
    text: the JSON as the row has it; by default it is made from the items.
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
    """JSON without jinja2's escapes for HTML, as transformers' filter writes it."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def printed_as_json(value: Any) -> Any:
    """A JSON value whose objects and lists print as JSON, at any depth."""
    match value:
        case dict():
            return JsonDict({key: printed_as_json(item) for key, item in value.items()})
        case list():
            return JsonList(map(printed_as_json, value))
        case _:
            return value


def _tool_call(call: Any) -> Any:
    """A tool call whose arguments are an object that prints as JSON, however the row gave them."""
    match call:
        case {"function": dict(function)}:
            return JsonDict(call | {"function": _tool_call(function)})
        case {"arguments": dict(arguments)}:
            return JsonDict(call | {"arguments": printed_as_json(arguments)})
        case {"arguments": str(text)}:
            return JsonDict(call | {"arguments": _parsed_arguments(text)})
        case dict():
            return JsonDict(call)
        case _:
            return call


def _parsed_arguments(text: str) -> Any:
    """The object that a JSON text describes, printed as that text; any other text unchanged."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return JsonDict(printed_as_json(arguments), text) if type(arguments) is dict else text


def _with_printable_calls(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return message | {"tool_calls": JsonList(map(_tool_call, calls))} if calls else message


def _remove_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """(the text without marks, the (start, end) characters of each marked range)."""
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


def common_length(first: str, second: str) -> int:
    """The length of the prefix that two texts have in common, in characters."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Server:
    """Answers the requests of `template_worker.py`, which come on stdin, on stdout."""

    def __init__(self, answers: BinaryIO, seconds: int):
        self._sandbox, self._answers, self._seconds = Sandbox(), answers, seconds
        self._templates: list[jinja2.Template] = []
        self._last_write = time.monotonic()
        self._cpu_limit = 0

    def serve(self, requests: BinaryIO) -> None:
        for line in requests:
            self._renew_limit()
            request = json.loads(line)
            if "compile" in request:
                self._answer([self._guarded(self._compile, request["compile"])])
                continue
            given = self._templates[request["template"]], request["shared"]
            self._answer(self._guarded(self._render_job, *given, job) for job in request["jobs"])

    def _guarded(self, work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
        """The answer of `work`, or its error as an answer: a template may raise anything."""
        try:
            return work(*given)
        except (RecursionError, MemoryError) as error:
            return {"overrun": f"it ends in a {type(error).__name__}"}
        except jinja2.TemplateSyntaxError as error:
            return {"refused": _first_line(str(error)), "line": error.lineno}
        except jinja2.TemplateError as error:
            return {"refused": _first_line(str(error)), "line": None}
        except Exception as error:
            return {"refused": _first_line(f"{type(error).__name__}: {error}"), "line": None}

    def _compile(self, source: str) -> dict[str, Any]:
        tree = self._sandbox.parse(source)
        self._templates.append(self._sandbox.from_string(source))
        words = {c.value for c in tree.find_all(nodes.Const) if type(c.value) is str}
        return {
            "template": len(self._templates) - 1,
            "marks": bool(re.search(r"\{%[-+]?\s*generation\b", source)),
            "variables": sorted(meta.find_undeclared_variables(tree)),
            "words": sorted(word for word in words if len(word) < 40),
        }

    def _render_job(
        self, template: jinja2.Template, shared: dict[str, Any], job: dict[str, Any]
    ) -> dict[str, Any]:
        """Render the job's variables, and compare the text of each cut with the whole text.

        A cut is (number of messages, with generation prompt). Its answer is (length in
        characters, length of the prefix in common with the whole text, text around the difference).
        """
        given = shared | job["given"]
        if "messages" in given:
            given["messages"] = [_with_printable_calls(message) for message in given["messages"]]
        self._sandbox.dated = False
        text, turns = self._render(template, given)
        cuts = []
        for upto, prompt in job.get("cuts", ()):
            first = {"messages": given["messages"][:upto], "add_generation_prompt": prompt}
            prefix, _ = self._render(template, given | first)
            common = common_length(text, prefix)
            near = prefix[max(common - CONTEXT, 0) : common + CONTEXT]
            cuts.append((len(prefix), common, near if common < len(prefix) else ""))
        return {"text": text, "turns": turns, "cuts": cuts, "dated": self._sandbox.dated}

    def _render(
        self, template: jinja2.Template, given: dict[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        self._renew_limit()
        text = template.render(given)
        if len(text) > MAX_CHARACTERS:
            raise MemoryError
        return _remove_marks(text)

    def _renew_limit(self) -> None:
        """Let the kernel end this process if the next rendering takes too much CPU time."""
        limit = int(time.process_time()) + self._seconds + 1
        if limit != self._cpu_limit:
            self._cpu_limit = limit
            _set_soft_limit(resource.RLIMIT_CPU, limit)
        if time.monotonic() > self._last_write + 1:  # tell the parent to wait on
            self._answer([None])

    def _answer(self, answers: Iterable[dict[str, Any] | None]) -> None:
        for answer in answers:
            self._answers.write(b"\n" if answer is None else json.dumps(answer).encode() + b"\n")
        self._answers.flush()
        self._last_write = time.monotonic()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:500]


def _set_soft_limit(kind: int, value: int) -> None:
    """Set the soft limit of this process; the hard limit stays as the system has it."""
    _, hard = resource.getrlimit(kind)
    with suppress(ValueError, OSError):  # a system without this limit; its parent has a clock
        resource.setrlimit(kind, (value if hard < 0 else min(value, hard), hard))


def main(seconds: int, memory: int) -> None:
    _set_soft_limit(resource.RLIMIT_AS, memory)
    _set_soft_limit(resource.RLIMIT_CORE, 0)
    Server(sys.stdout.buffer, seconds).serve(sys.stdin.buffer)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
