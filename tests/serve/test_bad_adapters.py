"""Every bad adapter is refused with the reason, and those that are served do not notice."""

import shutil

import pytest

from lorica.base.load import load as load_base
from lorica.errors import LoricaError
from lorica.serve.examination import Examiner
from lorica.serve.names import folder_in
from lorica.serve.prepare import prepare
from lorica.serve.twin import fingerprint_of, twin
from tests.serve.bad_adapters import BAD, NAMES, good
from tests.serve.fake_engine import Serving, acquire


@pytest.fixture(scope="module")
def served(small_base, tmp_path_factory):
    """A server with one good adapter; its root; and the folder that bad ones are made of."""
    base = load_base(str(small_base))
    of_base, tester = twin(base.model), twin(base.model)
    root = tmp_path_factory.mktemp("served") / "root"
    good(root / "good")
    pattern = good(root.parent / "pattern", seed=2)

    def prepared(file, condition):
        return prepare(of_base, file, tokenizer=base.tokenizer, condition=condition)

    reader = Examiner(base, fingerprint_of(of_base, base.tokenizer), tester)
    with Serving(reader=reader, prepare=prepared) as serving:
        serving.store.load("good", folder_in(root, "good"))
        yield serving, root, pattern


SLOW = {"a template that does not end"}  # its time runs out


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in BAD]
)
def test_a_bad_adapter_is_refused_with_the_reason(case, served, tmp_path):
    serving, _, pattern = served
    spoil, words = BAD[case]
    root = tmp_path / "root"
    shutil.copytree(pattern, root / "bad")
    spoil(root / "bad")
    bank, cards = dict(serving.engine.bank), serving.store.cards()
    with pytest.raises(LoricaError, match=words) as raised:
        serving.store.load("bad", folder_in(root, "bad"))
    assert raised.value.fix
    assert serving.store.cards() == cards
    assert serving.engine.bank == bank
    assert serving.store.residency.total == sum(form.bytes for form in bank.values())


def test_the_pattern_of_the_bad_ones_is_good(served):
    """Or they would be refused for another reason."""
    serving, root, pattern = served
    shutil.copytree(pattern, root / "another")
    assert serving.store.load("another", folder_in(root, "another")).number == 1
    assert serving.store.unload("another") > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_refused(name, served):
    serving, root, _ = served
    with pytest.raises(LoricaError, match="cannot be the name of an adapter"):
        folder_in(root, name)
    with pytest.raises(LoricaError, match="cannot be the name of an adapter"):
        serving.store.load(name, root / "good")


def test_a_bad_one_does_not_replace_a_good_one(served):
    serving, root, pattern = served
    before = serving.store.reserve("good")
    for case in ("one bit is another", "a NaN", "another base", "a pipe for weights"):
        folder = root.parent / "replacement"
        shutil.copytree(pattern, folder)
        BAD[case][0](folder)
        with pytest.raises(LoricaError):
            serving.store.load("good", folder)
        shutil.rmtree(folder)
        with acquire(serving.store, "good") as lease:
            assert (lease.key, lease.generation.number) == (before.key, 1)
    before.release()
