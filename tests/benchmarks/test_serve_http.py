"""The benchmark of HTTP reads the same answers on both sides, and says what each cost."""

import re

from benchmarks.serve.http import Cost, Load, best, measure


def test_both_sides_are_measured(capsys):
    measure("bundled", Load(streams=2, tokens=4), rounds=1)
    printed = capsys.readouterr().out
    assert re.search(r"bundled: 2 streams, [1-8] tokens", printed)
    assert len(re.findall(r"tokens/s +[\d.]+ ms of process time", printed)) == 2
    assert re.search(r"HTTP leaves \d+\.\d{3} of the tokens/s", printed)


def test_the_best_round_counts():
    cost = best([Cost(2.0, 1.0, 10), Cost(1.0, 4.0, 10)])
    assert (cost.tokens_per_second, cost.milliseconds) == (10.0, 100.0)
