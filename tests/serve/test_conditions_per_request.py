"""HyperLoRA by request: an unseen condition is refused, and two in one batch are as each alone."""

import asyncio

import pytest

from lorica.base.load import load
from lorica.errors import ConfigError
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.exchange import Job
from lorica.serve.refusals import ConditionNotFound
from tests.serve.shelf import CONDITIONS, stock
from tests.serve.traffic import Ask, Traffic, mistakes


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    return stock(root, {"hyperlora": 1}, twice=0, prompts=(4, 30), tokens=8)


@pytest.fixture
def engine(shelf, small_base):
    engine = engine_of(load(str(small_base)), EngineSettings(max_length=448, slots=8))
    engine.start()
    yield engine
    engine.close()


def test_conditions_in_one_batch_give_what_each_gives_alone(engine, shelf, monkeypatch):
    ((alias, (folder,)),) = shelf.folders.items()
    generation = engine.store.load(alias, folder)
    for condition in CONDITIONS:  # or the first answers are complete before the others have theirs
        with engine.store.reserve(f"{alias}:{condition}") as lease:
            lease.ensure()
    passes, acting = [], engine._decoder._acting
    monkeypatch.setattr(
        engine._decoder, "_acting", lambda keys: (passes.append(set(keys)), acting(keys))[1]
    )
    asks = [
        Ask(alias, condition, prompt, take, shelf.alone[key, prompt][take].clear)
        for prompt in range(len(shelf.prompts))
        for take in range(2)
        for condition in CONDITIONS
        for key in shelf.keys(alias, condition)
        if shelf.alone[key, prompt][take].clear
    ]
    outcomes = Traffic(engine, shelf, clients=1).run(asks)
    assert mistakes(shelf, outcomes, {(alias, 1): generation.digest}) == []
    assert max(map(len, passes)) == len(CONDITIONS)
    tokens = {outcome.ask.condition: outcome.tokens for outcome in outcomes}
    assert len(set(tokens.values())) == len(CONDITIONS)


@pytest.mark.parametrize("condition", ["", ":xx-yy", ":", ":en-de:de-en", ":EN-DE"])
def test_an_unseen_condition_is_refused(condition, engine, shelf):
    ((alias, (folder,)),) = shelf.folders.items()
    engine.store.load(alias, folder)
    sampling = shelf.alone[("", None), 0][0].sampling
    job = Job(tenant="t", model=alias + condition, prompt=shelf.prompts[0], sampling=sampling)
    with pytest.raises(ConditionNotFound, match="en-de"):
        engine.submit(job)
    stats = engine.stats()
    assert (stats.queued, stats.running, engine.store.draining()) == (0, 0, [])


def test_only_the_named_conditions_are_served(engine, shelf):
    ((alias, (folder,)),) = shelf.folders.items()
    with pytest.raises(ConfigError, match="xx-yy"):
        engine.store.load(alias, folder, conditions=["en-de", "xx-yy"])
    engine.store.load(alias, folder, conditions=["de-en"])
    with pytest.raises(ConditionNotFound):
        engine.store.reserve(f"{alias}:en-de")
    (card,) = engine.store.cards()
    assert card.conditions == ("de-en",)
    outcome = asyncio.run(Traffic(engine, shelf).ask(Ask(alias, "de-en", 0, 0, 1)))
    assert outcome.tokens == shelf.alone[(card.digest, "de-en"), 0][0].tokens[:1]
