"""Jinja for chat templates, in a sandbox whose work and memory are bounded.

A chat template comes with a downloaded base and is a program. Jinja's immutable sandbox keeps
it from Python's insides, but lets it loop for hours or fill the memory. Here every turn of a
loop, call, filter and operator pays from a budget of steps, and whatever can make a text
longer (`*`, `+`, `~`, join, replace, format, printing a list) is measured before it is done.
Filters are a list of those that chat templates use; methods that pad a text are closed.

A trace function (sys.settrace) would bound the loops too, but not one `'a' * 10**10`, and it
would shut out debuggers. Time is only the second line: it differs from machine to machine.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS = 400_000  # a conversation of 1,000 turns needs some 10,000
SECONDS = 5.0  # of this thread's processor time, for steps that are slow each
SIZE = 4_000_000  # characters of one text
TOTAL = 64 * SIZE  # characters of all texts together, those between as well
FILTERS = """
    abs attr batch capitalize count d default dictsort e escape first float format groupby indent
    int items join last length list lower map max min reject rejectattr replace reverse safe
    select selectattr sort string sum title tojson trim truncate unique upper
""".split()  # noqa: SIM905
PADDING = frozenset({"center", "encode", "expandtabs", "ljust", "rjust", "translate", "zfill"})
# Private characters around what {% generation %} encloses.
MARK_START, MARK_END = "\ue0f0\ue0f1", "\ue0f1\ue0f0"


class Overrun(Exception):
    """The template used up its steps, its time or its characters."""


class Budget:
    def __init__(self) -> None:
        self.steps = self.total = 0
        self.until = time.thread_time() + SECONDS

    def spend(self, steps: int = 1) -> None:
        before, self.steps = self.steps, self.steps + steps
        if self.steps > STEPS:
            raise Overrun(f"it takes more than {STEPS:,} steps for one conversation")
        if before >> 4 != self.steps >> 4 and time.thread_time() > self.until:
            raise Overrun(f"it takes more than {SECONDS:g} s for one conversation")

    def made(self, characters: int) -> None:
        """Count a text that was made; all of them might be kept."""
        self.total += characters
        if self.total > TOTAL:
            raise Overrun(f"it makes texts of more than {TOTAL:,} characters together")

    def measure(self, value: Any, times: int = 1) -> int:
        """Pay for `value` printed `times` times, before it is; its characters, about."""
        left, todo = SIZE // max(times, 1), [value]
        while todo:
            item = todo.pop()
            self.spend()
            left -= len(item) if isinstance(item, str) else 4
            if isinstance(item, Mapping):
                todo += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set):
                self.spend(len(item) >> 4)
                todo += item
            if left < 0:
                raise Overrun(f"it makes a text of more than {SIZE:,} characters")
        return SIZE // max(times, 1) - left


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant says, marked in the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return MARK_START + caller() + MARK_END


class _Paid(NodeTransformer):
    """Has every turn of a loop paid for, and what `~` joins and a slice copies."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        pay = nodes.Filter(nodes.Const(True), "_pay", [], [], None, None)
        node.body = [nodes.ExprStmt(pay), *node.body]
        if node.test is not None:
            node.test = nodes.And(pay, node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return nodes.Filter(node, "_made", [], [], None, None)
        return node


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, Generation],
            finalize=self._printed,
        )
        self.budget = Budget()
        self.filters = {name: self._guarded(name, self.filters[name]) for name in FILTERS}
        self.filters["tojson"] = self._tojson
        self.filters["_pay"] = self._pay
        self.filters["_concat"] = self._concat
        self.filters["_made"] = self._made
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Paid().visit(super()._parse(source, name, filename))

    # What joins the pieces of a template, of a macro and of a block that is set.
    def concat(self, pieces: Iterable[str]) -> str:  # type: ignore[override]
        kept, left = [], SIZE
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                raise Overrun(f"it makes a text of more than {SIZE:,} characters")
            kept.append(piece)
        return "".join(kept)

    def _printed(self, value: Any) -> Any:
        self.budget.made(self.budget.measure(value))
        return value

    def _made(self, value: Any) -> Any:
        self.budget.spend()
        if isinstance(value, str | list | tuple):
            self.budget.made(len(value))
        return value

    def _pay(self, value: Any) -> Any:
        self.budget.spend()
        return value

    def _concat(self, items: list[Any]) -> str:
        self.budget.made(self.budget.measure(items))
        return "".join(str(item) for item in items)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as it stands, without jinja's escapes for HTML."""
        if isinstance(indent, int) and not 0 <= indent <= 16:
            raise Overrun(f"it indents JSON by {indent}")
        self.budget.measure(value, times=8)
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def _guarded(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, with what it is given paid for, and what it yields, item by item."""
        lead = 1 if hasattr(filter_, "jinja_pass_arg") else 0

        @wraps(filter_)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            given = list(args[lead:])
            if given and hasattr(given[0], "__next__"):
                given[0] = [self._pay(item) for item in given[0]]
            self.budget.measure([given[0], *kwargs.values()] if given else [])
            self._growth(name, given, kwargs)
            result = self._made(filter_(*args[:lead], *given, **kwargs))
            return map(self._pay, result) if hasattr(result, "__next__") else result

        return guarded

    def _growth(self, name: str, given: list[Any], kwargs: dict[str, Any]) -> None:
        """Measure what join, replace, indent, batch and format would make, before they do."""
        rest = [*given[1:], *kwargs.values()]
        if name == "join" and given:
            between = next((x for x in rest if isinstance(x, str)), "")
            self.budget.measure(between, times=len(given[0]))
        elif name == "replace" and rest and isinstance(given[0], str):
            self._replaced(given[0], rest)
        elif name == "indent" and rest:
            width = rest[0] if isinstance(rest[0], int) else len(str(rest[0]))
            self.budget.measure(" ", times=width * (1 + str(given[0]).count("\n")))
        elif name == "batch" and rest and isinstance(rest[0], int):
            self.budget.measure(" ", times=rest[0] * 16)
        elif name == "format" and given and isinstance(given[0], str):
            self._filled(given[0], rest, "%")

    def _replaced(self, text: str, rest: list[Any]) -> None:
        old, new = str(rest[0]), str(rest[1]) if len(rest) > 1 else ""
        self.budget.spend(len(text) >> 10)
        self.budget.measure(new, times=text.count(old))

    def _filled(self, pattern: str, values: Any, sign: str) -> None:
        if re.search(r"\d{5}|%[^%a-zA-Z]*\*|\{[^{}]*\{", pattern):
            raise Overrun("it pads a text to a width of five digits, or one that it computes")
        self.budget.measure(values, times=pattern.count(sign))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in PADDING
        if padding or isinstance(obj, int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            self._filled(value.__self__, [*args, kwargs], "{")
            return inner(*args, **kwargs)

        return measured

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.budget.spend()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            self.budget.measure([owner, *args])
            if name == "join" and args:
                args = ([self._pay(item) for item in args[0]],)
                self.budget.measure(owner, times=len(args[0]))
            elif name == "replace" and len(args) > 1:
                self._replaced(owner, list(args))
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        texts = str | list | tuple
        if operator == "+" and isinstance(left, texts):
            self.budget.measure(
                " ", times=len(left) + (len(right) if isinstance(right, texts) else 0)
            )
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, texts) and isinstance(other, int):
                    self.budget.measure(" ", times=max(other, 0) * len(one))
            _small(left, right)
        elif operator == "**":
            _small(left, right)
            if (
                isinstance(left, int)
                and isinstance(right, int)
                and left.bit_length() * right > 4096
            ):
                raise Overrun("it computes a number of more than 4,096 bits")
        elif operator == "%" and isinstance(left, str):
            self._filled(left, right, "%")
        return self._made(super().call_binop(context, operator, left, right))


def _small(*values: Any) -> None:
    if sum(v.bit_length() for v in values if isinstance(v, int)) > 4096:
        raise Overrun("it computes a number of more than 4,096 bits")


def raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)
