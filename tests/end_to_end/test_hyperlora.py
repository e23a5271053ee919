"""HyperLoRA on the bundled task: six directions of translation, chosen by the condition alone."""

import argparse
from itertools import islice

import pytest

from benchmarks.hyperlora import HEAD, Arena, Found, arguments, language, rows_of, vocabularies
from lorica.evaluation.stats import ratios
from tests.marks import at_length


@pytest.fixture(scope="module")
def chosen() -> argparse.Namespace:
    return arguments(["--rows", "3200", "--held-out", "120", "--steps", "200"])


def test_the_languages_are_told_apart(chosen):
    train, test = rows_of(chosen)
    words = vocabularies(train)
    assert set(words) == {"ve", "ol", "tu"}
    for row in test:
        source, into = row["condition"].split("-")
        assert language(row["completion"], words) == into
        assert language(row["prompt"], words) == source
    assert language("nothing known", words) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_beats_one_shared_lora_and_uses_its_condition(chosen, tmp_path, capsys):
    contenders = Arena(*rows_of(chosen), chosen, tmp_path).contenders()
    found: list[Found] = list(islice(contenders, at_length(3, 2)))  # each is trained in its turn
    with capsys.disabled():
        print("", HEAD, *found, sep="\n")
    hyper, shared, *apart = found
    assert (hyper.name, shared.name) == ("hyperlora", "one lora")
    assert abs(hyper.trained - shared.trained) < 0.05 * shared.trained
    assert all(hyper.trained < one.trained / 3 for one in apart)
    better = ratios([shared.nll, hyper.nll], hyper.tokens).difference(0, 1)
    assert better.high < 0, "nats per token, hyperlora minus the shared LoRA, 95 % interval"
    assert hyper.swapped is not None
    assert hyper.loss(hyper.swapped) > 3 * hyper.loss(hyper.nll)
    assert hyper.language > 0.95
    assert shared.language < 0.75, "nothing tells it into which of two languages"
