"""Adapters that are made from a condition: "alias:condition", made once each, the oldest leaves."""

import json

import pytest

from lorica.errors import ConfigError
from lorica.formats.adapter_file import read
from lorica.methods.hyperlora import Hyperlora
from lorica.serve.identity import bank_key
from lorica.serve.refusals import ConditionNotFound, ModelNotFound
from tests.serve.fake_engine import (
    SIZE,
    Serving,
    acquire,
    prepare,
    write_adapter,
    write_conditioned,
)

CONDITIONS = ("de-en", "en-de", "a:b c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_conditioned(tmp_path_factory.mktemp("conditioned") / "hyper", 7, CONDITIONS)


def test_each_condition_is_a_model_and_is_made_once(folder):
    made = []

    def counted(file, condition):
        made.append(condition)
        return prepare(file, condition)

    with Serving(prepare=counted) as serving:
        generation = serving.store.load("hyper", folder)
        assert generation.conditions == CONDITIONS
        assert made == ["de-en"], "one is tried at the load"
        keys = set()
        for _ in range(2):
            for condition in CONDITIONS:  # a colon in a condition is its own
                with acquire(serving.store, f"hyper:{condition}") as lease:
                    content = serving.engine.bank[lease.key]
                    assert (content.number, content.condition) == (7, condition)
                    assert lease.condition == condition
                    keys.add(lease.key)
        assert sorted(made) == sorted(CONDITIONS)
        assert len(keys) == 3
        (card,) = serving.store.cards()
        assert (card.name, card.conditions) == ("hyper", CONDITIONS)
        assert card.resident_bytes == 3 * SIZE
        assert serving.store.unload("hyper") == 3 * SIZE


def test_an_unknown_condition_is_refused_and_the_known_ones_are_named(folder):
    with Serving() as serving:
        serving.store.load("hyper", folder)
        for model in ("hyper", "hyper:", "hyper:fr-en", "hyper:DE-EN", "hyper:de-en "):
            with pytest.raises(ConditionNotFound, match="de-en, en-de, a:b c") as raised:
                acquire(serving.store, model)
            assert isinstance(raised.value, ModelNotFound)
            assert (raised.value.status, raised.value.code) == (404, "model_not_found")
        with pytest.raises(ModelNotFound) as raised:
            acquire(serving.store, "nobody:de-en")
        assert "hyper" not in str(raised.value)
        assert "'nobody:de-en'" in str(raised.value)
        assert serving.store.generation("hyper:any").conditions == CONDITIONS


def test_a_condition_of_an_adapter_without_one_is_refused(folder, tmp_path):
    with Serving() as serving:
        serving.store.load("alice", write_adapter(tmp_path / "a", 1))
        with pytest.raises(
            ConditionNotFound, match="'alice' has no conditions, and 'de-en' was asked for"
        ):
            acquire(serving.store, "alice:de-en")
        with pytest.raises(ConfigError, match="which has no conditions"):
            serving.store.load("bob", tmp_path / "a", conditions=["x"])


def test_the_condition_that_was_not_used_for_longest_leaves(folder):
    with Serving(budget=2 * SIZE) as serving:
        serving.store.load("hyper", folder)
        acquire(serving.store, "hyper:en-de").release()
        acquire(serving.store, "hyper:de-en").release()
        acquire(serving.store, "hyper:a:b c").release()
        conditions = {content.condition for content in serving.engine.bank.values()}
        assert conditions == {"de-en", "a:b c"}
        assert serving.states() == {"hyper": "resident"}


def test_an_operator_may_serve_fewer_conditions(folder):
    with Serving() as serving:
        generation = serving.store.load("hyper", folder, conditions=["en-de", "en-de"])
        assert generation.conditions == ("en-de",)
        with pytest.raises(ConditionNotFound, match=r"known +en-de\n"):
            acquire(serving.store, "hyper:de-en")
        with pytest.raises(ConfigError, match=r"does not know the condition 'fr-en'"):
            serving.store.load("hyper", folder, conditions=["fr-en"])
        assert serving.store.generation("hyper") is generation


def test_embeddings_must_be_named(tmp_path):
    method = Hyperlora(r=2, latent=4, hidden=2, penalty=0, condition="embedding", width=2)
    folder = write_adapter(tmp_path / "e", 1, method)
    with Serving() as serving:
        with pytest.raises(ConfigError, match="any embedding as condition, and none is named"):
            serving.store.load("vectors", folder)
        with pytest.raises(ConfigError, match="an embedding has 3 numbers; this adapter reads 2"):
            serving.store.load("vectors", folder, conditions=["[1, 2, 3]"])
        with pytest.raises(ConfigError, match="is no embedding"):
            serving.store.load("vectors", folder, conditions=["north"])
        serving.store.load("vectors", folder, conditions=["[1, 2]"])
        acquire(serving.store, "vectors:[1, 2]").release()


def test_an_adapter_of_one_unnamed_condition_is_a_model_by_itself(tmp_path):
    folder = write_conditioned(tmp_path / "one", 1, ())
    with Serving() as serving:
        assert serving.store.load("one", folder).conditions == ()
        acquire(serving.store, "one").release()


def test_conditions_of_two_aliases_with_the_same_content_are_shared(folder):
    with Serving() as serving:
        serving.store.load("hyper", folder)
        serving.store.load("other", folder, conditions=["en-de"])
        acquire(serving.store, "hyper:en-de").release()
        assert len(serving.engine.bank) == 2
        assert serving.store.unload("other") == 0
        assert serving.store.unload("hyper") == 2 * SIZE


def test_the_seed_is_part_of_the_content(tmp_path):
    """VeRA draws its projections from it, where they are not saved."""
    folder = write_adapter(tmp_path / "a", 1)
    first = read(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seed": 5}))
    assert read(folder).digest == first.digest
    assert bank_key(read(folder)) != bank_key(first)


def test_no_two_lists_of_fields_are_one_key(tmp_path):
    file = read(write_adapter(tmp_path / "a", 1))
    conditions = [None, "", "None", "0", "a", "aa", "-", "+"]
    assert len({bank_key(file, condition) for condition in conditions}) == len(conditions)
