"""Hostile chat templates: they are stopped, stay in memory limits, and reach no attributes."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from lorica.data import template_worker
from lorica.data.chat_template import ChatTemplate
from lorica.data.fields import BadRow
from lorica.data.template_worker import Overrun, Worker
from lorica.errors import DataError

HI = [{"role": "user", "content": "hi"}]
# Two nested lists that are equal and share no part on the way down: 2^60 comparisons.
TWINS = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
KEYS = (
    "{% set ns = namespace(a=(1,), b=(1,)) %}{% for i in range(60) %}"
    "{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}"
)
HOARD = "{% set x = range(99999) | list %}{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
WIDE = "{% set d = dict.fromkeys(range(99999)) %}{% set ns = namespace(l=[]) %}"
WIDE += "{% for i in range(99999) %}"
LONG = {  # they take time
    "==": TWINS + "{{ ns.a == ns.b }}",
    "!=": TWINS + "{{ ns.a != ns.b }}",
    "<": TWINS + "{{ ns.a < ns.b }}",
    "in": TWINS + "{{ ns.a in [ns.b] }}",
    "index": TWINS + "{{ [ns.b].index(ns.a) }}",
    "count": TWINS + "{{ [ns.b].count(ns.a) }}",
    "sort": TWINS + "{{ [ns.a, ns.b] | sort }}",
    "unique": KEYS + "{{ [ns.a, ns.b] | unique | list | length }}",
    "key": KEYS + "{{ {ns.a: 1}[ns.b] }}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}"
    "{% endfor %}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "power": "{{ (10 ** 100000000) % 7 }}",
    "lazy filters": "{% for a in range(90000) %}{% set x = range(100000)|map('string')|list %}"
    "{% endfor %}",
}
LARGE = {  # they take memory
    "times": "{{ 'a' * 30000000000 }}",
    "list times": "{{ ([1] * 10000000000)|length }}",
    "plus": "{% set ns = namespace(s='a') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "percent": "{{ '%10000000000s' % 1 }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "join": "{{ range(100000)|join('a' * 100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 1000000) }}",
    "indent": "{{ ('a\\n' * 100000)|indent(10000000) }}",
    "batch": "{{ [1]|batch(10000000000, 'x')|list }}",
    "json": "{{ [1, 2]|tojson(indent=10000000000) }}",
    "range | list": HOARD + "{% set ns.l = [ns.l, x | list] %}{% endfor %}",
    "dict()": WIDE + "{% set ns.l = [ns.l, dict(d)] %}{% endfor %}",
    "copy": WIDE + "{% set ns.l = [ns.l, d.copy()] %}{% endfor %}",
    "fromkeys": WIDE + "{% set ns.l = [ns.l, dict.fromkeys(d)] %}{% endfor %}",
    "items": WIDE + "{% set ns.l = [ns.l, d.items() | list] %}{% endfor %}",
    "slices": "{% set ns = namespace(l=[]) %}{% set s = 'a' * 3000000 %}"
    "{% for i in range(90000) %}{% set ns.l = [ns.l, s[i:]] %}{% endfor %}",
    "captured": "{% set x %}{% for i in range(99999) %}{{ 'a' * 999999 }}{% endfor %}{% endset %}",
    "a billion laughs": "{% set l = ['aaaaaaaaaaaa'] %}" + "{% set l = [l, l] %}" * 40 + "{{ l }}",
}
BOMBS = LONG | LARGE
QUICK = ("==", "times", "range | list", "format")


@pytest.fixture(scope="module")
def small():
    """A worker with tight limits, which a hostile template exceeds at once."""
    worker = Worker(seconds=0, memory=120 << 20, patience=30)
    yield worker
    worker.close()


def no_process(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in BOMBS]
)
def test_a_template_that_does_not_end_is_stopped(small, name):
    small.render("{{ 1 }}", {}, [{"given": {}}])
    number = small._process.pid
    with pytest.raises(Overrun, match=r"processor time|memory|MemoryError"):
        small.render(BOMBS[name], {}, [{"given": {}}])
    assert no_process(number)  # neither running nor a zombie
    (answer,) = small.render("{{ 1 }}", {}, [{"given": {}}])
    assert answer["text"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["==", "items", "macro tree"])
def test_the_default_limits_stop_it_too(name):
    start = time.monotonic()
    with pytest.raises(DataError, match="does not come to an end") as error:
        ChatTemplate(BOMBS[name], {}).prompt(HI)
    assert "data.chat_template" in error.value.fix
    assert time.monotonic() - start < 60


def test_a_worker_that_is_silent_is_killed():
    worker = Worker()
    worker.compile("{{ 1 }}")
    worker._patience = 0.2
    number = worker._process.pid
    os.kill(number, signal.SIGSTOP)
    with pytest.raises(Overrun, match="no sign of life"):
        worker.render("{{ 1 }}", {}, [{"given": {}}])
    assert no_process(number)
    worker.close()


@pytest.mark.parametrize("name", ["endless macro", "deep", "syntax", "unknown filter"])
def test_a_template_that_is_not_jinja_is_refused(name):
    source = {
        "endless macro": "{% macro m(n) %}{{ m(n+1) }}{% endmacro %}{{ m(0) }}",
        "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "syntax": "\n{% for %}",
        "unknown filter": "{{ messages|nothing }}",
    }[name]
    with pytest.raises(DataError, match="chat template") as error:
        ChatTemplate(source, {}).prompt(HI)
    assert "chat_template.jinja" in error.value.fix
    if name == "syntax":
        assert error.value.facts["line"] == 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ (1).__class__.__bases__[0].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum() }}",
        "{{ [1]|random }}",
        "{% for a in range(10000000000) %}{% endfor %}",
        "{{ bos_token + 'a' }}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_makes_a_bad_row(source):
    with pytest.raises((BadRow, DataError), match=r"template refuses it|cannot be read"):
        ChatTemplate(source, {}).prompt(HI)


def test_the_features_of_real_templates_work():
    source = """
{%- set ns = namespace(n=0) %}
{%- for m in messages if m.role != 'x' %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- set ns.n = ns.n + loop.length %}
    {{- loop.last ~ m['content'].strip().split('.')[-1] + ('-' * 3) }}
{%- endfor %}
{%- macro f(x) %}<{{ x | trim | upper }}>{% endmacro %}
{{- f(' a ') }}|{{ {'<': 'ü'} | tojson }}|{{ ns.n }}|{{ [3, 1] | sort | join(',') }}
{{- '|%s' | format('z') }}|{{ '{0}'.format('y') }}|{{ messages[0].items() | list | length }}
{{- '|' ~ none | default('d', true) }}|{{ messages | map(attribute='role') | list }}
{{- '|' + bos_token }}"""
    template = ChatTemplate(source, {"bos_token": "<s>"})
    messages = [{"role": "user", "content": " a.b "}, {"role": "x", "content": ""}]
    text = template.prompt(messages)
    assert text == "Trueb---<A>|{\"<\": \"ü\"}|1|1,3|z|y|2|d|['user', 'x']|<s>"


def test_a_long_conversation_is_within_the_limits():
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 2000
    assert len(ChatTemplate(source, {}).prompt(messages)) > 2_000_000


def test_a_value_that_is_not_json_refuses_only_its_row():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    rows = [{"given": {"x": 1}}, {"given": {"x": 10**5000}}, {"given": {"x": "\ud800"}}]
    template = ChatTemplate("{{ x }}", {})
    number, huge, surrogate = template._run(rows)
    assert (number["text"], surrogate["text"]) == ("1", "\ud800") and "refused" in huge
    assert "refused" in template._run([{"given": {"x": deep}}])[0]


def test_threads_share_a_worker_and_processes_have_their_own():
    def text(number):
        job = {"given": {"x": str(number) * 1000}}
        return template_worker.render_all("{{ x }}", {}, [job])[0]["text"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text, range(100))) == [str(n) * 1000 for n in range(100)]
    here = template_worker._worker._process.pid
    with get_context("spawn").Pool(2) as pool:
        numbers = pool.map(_own_worker, range(2), chunksize=1)
    assert here not in numbers
    assert text(5) == "5" * 1000 and template_worker._worker._process.pid == here


def _own_worker(number):
    (answer,) = template_worker.render_all("{{ x }}", {}, [{"given": {"x": number}}])
    assert answer["text"] == str(number)
    return template_worker._worker._process.pid


CHILD = """
import sys, threading
from lorica.data import template_worker
template_worker._worker = template_worker.Worker(seconds=0)
print(template_worker.render_all("{{ 1 }}", {}, [{"given": {}}])[0]["text"], flush=True)
print(template_worker._worker._process.pid, flush=True)
template_worker.render_all(sys.argv[1], {}, [{"given": {}}])
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None])
def test_the_worker_ends_with_its_parent(end):
    """Also if it is interrupted, terminated or killed while a template runs."""
    source = LONG["nested loops"] if end else "{{ 1 }}"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, source], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        worker = int(parent.stdout.readline())
        if end:
            time.sleep(0.2)
            parent.send_signal(end)
        parent.wait(30)
    until = time.monotonic() + 60  # killed parents leave it to the limit of processor time
    while not no_process(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert no_process(worker)


def test_an_interrupt_leaves_no_answer_in_the_pipe(monkeypatch):
    worker = Worker()
    assert worker.render("{{ x }}", {}, [{"given": {"x": 1}}])[0]["text"] == "1"
    with monkeypatch.context() as patch:
        patch.setattr(
            worker, "_next_line", lambda process: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            worker.render("{{ x }}", {}, [{"given": {"x": 2}}])
    assert worker.render("{{ x }}", {}, [{"given": {"x": 3}}])[0]["text"] == "3"
    worker.close()


def test_the_parent_survives_the_end_of_the_process():
    worker = Worker()
    worker.compile("{{ 1 }}")
    threading.Thread(target=worker._process.kill).start()
    worker._process.wait()
    with pytest.raises(Overrun, match="status -9"):
        worker.render("{{ 1 }}", {}, [{"given": {}}])
    assert worker.render("{{ 1 }}", {}, [{"given": {}}])[0]["text"] == "1"
    worker.close()


def test_todays_date_is_reported():
    (answer,) = ChatTemplate("{{ strftime_now('%Y') }}", {})._run([{"given": {}}])
    assert len(answer["text"]) == 4 and answer["dated"]
