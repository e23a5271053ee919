"""A chat template is a program from a stranger: it ends, and stays small."""

import resource
import time

import pytest

from lorica.data.chat import ChatTemplate
from lorica.data.shape import BadRow
from lorica.errors import DataError

BOMBS = {
    "nested loops": "{% for i in range(2000) %}{% for j in range(2000) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(3000) %}{% for b in range(3000) if false %}{% endfor %}"
    "{% endfor %}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "endless macro": "{% macro m(n) %}{{ m(n+1) }}{% endmacro %}{{ m(0) }}",
    "lazy filters": "{% for a in range(90000) %}{% set x = range(100000)|map('string')|list %}"
    "{% endfor %}",
    "times": "{{ 'a' * 300000000 }}",
    "times, other way round": "{{ 300000000 * 'a' }}",
    "list times": "{{ ([1] * 100000000)|length }}",
    "plus": "{% set ns = namespace(s='a') %}{% for i in range(40) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "tilde": "{% set ns = namespace(s='a') %}{% for i in range(40) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "power": "{{ 10 ** 100000000 }}",
    "squares": "{% set ns = namespace(n=10) %}{% for i in range(99) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "percent": "{{ '%1000000000s' % 1 }}",
    "percent star": "{{ '%*s' % (1000000000, 1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "computed width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format filter": "{{ '%1000000000s'|format(1) }}",
    "join": "{{ range(100000)|join('a' * 10000) }}",
    "join method": "{{ ('a' * 10000).join(range(9000)|map('string')) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "indent": "{{ ('\\n' * 100000)|indent(1000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "json": "{{ [1, 2]|tojson(indent=1000000000) }}",
    "printed": "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
    "captured": "{% set x %}{% for i in range(100000) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}",
    "hoarded": "{% set ns = namespace(l=[]) %}{% for i in range(90000) %}"
    "{% set ns.l = ns.l + ['a' * 4000000] %}{% endfor %}",
    "hoarded slices": "{% set ns = namespace(l=[]) %}{% set s = 'a' * 3000000 %}"
    "{% for i in range(90000) %}{% set ns.l = [ns.l, s[i:]] %}{% endfor %}",
    "a billion laughs": "{% set l = ['aaaaaaaaaaaa'] %}" + "{% set l = [l, l] %}" * 40 + "{{ l }}",
    "laughs in a filter": "{% set l = ['a'] %}" + "{% set l = [l, l] %}" * 40 + "{{ l|upper }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "syntax": "{% for %}",
    "unknown filter": "{{ messages|urlize }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_does_not_end_is_stopped(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(DataError, match="chat template") as error:
        ChatTemplate(BOMBS[name], {}).render([{"role": "user", "content": "hi"}], None)
    assert error.value.fix
    assert time.thread_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # KiB


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ messages.append(1) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum() }}",
        "{% for a in range(10000000000) %}{% endfor %}",
        "{{ bos_token + 'a' }}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_makes_a_bad_row(source):
    with pytest.raises(BadRow, match="the chat template refuses it"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}], None)


def test_what_honest_templates_use_works():
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
    text, _ = template.render(messages, None)
    assert text == "Trueb---<A>|{\"<\": \"ü\"}|1|1,3|z|y|2|d|['user', 'x']|<s>"


def test_a_long_conversation_is_far_from_the_bounds():
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 2000
    text, _ = ChatTemplate(source, {}).render(messages, None)
    assert len(text) > 2_000_000


def test_todays_date_is_noticed():
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    text, _ = template.render([], None)
    assert len(text) == 4 and template.dated
