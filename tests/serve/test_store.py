"""Aliases, generations and leases: what a request gets, and when memory comes back."""

import shutil
import threading

import pytest

from lorica.errors import ConfigError, FileError, ResourceError
from lorica.serve.refusals import Conflict, ModelNotFound, Unavailable
from tests.serve.fake_engine import SIZE, Serving, acquire, prepare, write_adapter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders 1 to 4, of adapters with these numbers."""
    root = tmp_path_factory.mktemp("adapters")
    return {number: write_adapter(root / f"a{number}", number) for number in range(1, 5)}


@pytest.fixture
def serving():
    with Serving() as serving:
        yield serving


def number(serving, lease) -> float:
    """Of the adapter in the bank that a lease is answered with."""
    return serving.engine.bank[lease.key].number


def test_a_loaded_adapter_is_in_the_bank(serving, folders):
    generation = serving.store.load("alice", folders[1])
    assert (generation.number, generation.method) == (1, "lora")
    with acquire(serving.store, "alice") as lease:
        assert number(serving, lease) == 1
    assert serving.states() == {"alice": "resident"}
    (card,) = serving.store.cards()
    assert (card.resident_bytes, card.parent, card.digest) == (SIZE, "base", generation.digest)


def test_unknown_and_unloaded_names_are_not_there(serving, folders):
    for name in ("alice", "", "base", "alice:x", "../alice"):
        with pytest.raises(ModelNotFound):
            acquire(serving.store, name)
    serving.store.load("alice", folders[1])
    assert serving.store.unload("alice") == SIZE
    assert serving.engine.bank == {}
    with pytest.raises(ModelNotFound):
        serving.store.reserve("alice")
    with pytest.raises(ModelNotFound):
        serving.store.unload("alice")
    assert serving.store.cards() == []


def test_a_replaced_generation_drains_and_goes_with_its_last_lease(serving, folders):
    serving.store.load("alice", folders[1])
    first, second = acquire(serving.store, "alice"), acquire(serving.store, "alice")
    serving.store.load("alice", folders[2])
    with acquire(serving.store, "alice") as new:
        assert (number(serving, first), number(serving, new)) == (1, 2)
    (draining,) = serving.store.draining()
    assert (draining.state, draining.generation) == ("draining", 1)
    first.release()
    first.release()  # a second time it does nothing
    assert number(serving, second) == 1
    second.release()
    serving.store.residency.wait_until_removed(second.key)
    assert serving.numbers == [2]
    assert serving.store.draining() == []


def test_unloading_frees_what_streams_use_when_they_end(serving, folders):
    serving.store.load("alice", folders[1])
    lease = acquire(serving.store, "alice")
    assert serving.store.unload("alice") == 0
    assert number(serving, lease) == 1
    lease.release()
    serving.store.residency.wait_until_removed(lease.key)
    assert serving.engine.bank == {}


def test_a_failed_load_leaves_the_old_generation(serving, folders, tmp_path):
    serving.store.load("alice", folders[1])
    broken = tmp_path / "broken"
    shutil.copytree(folders[2], broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileError, match="not what was saved"):
        serving.store.load("alice", broken)
    with acquire(serving.store, "alice") as lease:
        assert number(serving, lease) == lease.generation.number == 1
    (card,) = serving.store.cards()
    assert card.state == "resident"
    assert len(card.warnings) == 1
    assert "not what was saved" in card.warnings[0]
    assert serving.store.load("alice", folders[2]).number == 2
    assert serving.store.cards()[0].warnings == ()


def test_what_cannot_be_prepared_or_added_leaves_nothing(folders):
    def refuse(file, condition):
        raise ConfigError("this method cannot be mixed in a batch.")

    with Serving(prepare=refuse) as serving:
        with pytest.raises(ConfigError, match="mixed in a batch"):
            serving.store.load("alice", folders[1])
        assert (serving.store.cards(), serving.store.residency.total) == ([], 0)
        with pytest.raises(ModelNotFound):
            serving.store.reserve("alice")


def test_a_generation_is_replaced_only_if_it_is_the_expected_one(serving, folders):
    with pytest.raises(Conflict, match="has generation 0, and 3 was expected"):
        serving.store.load("alice", folders[1], expected_generation=3)
    serving.store.load("alice", folders[1], expected_generation=0)
    with pytest.raises(Conflict):
        serving.store.load("alice", folders[2], expected_generation=0)
    assert serving.store.load("alice", folders[2], expected_generation=1).number == 2
    with pytest.raises(Conflict):
        serving.store.unload("alice", expected_generation=1)
    serving.store.unload("alice", expected_generation=2)
    assert serving.store.load("alice", folders[1]).number == 3, "numbers are not used again"


def test_another_load_in_between_is_noticed_when_it_is_published(folders):
    """expected_generation is compared again at the end: an unload does not wait for a load."""
    has_begun, may_go_on = threading.Event(), threading.Event()

    def slow(file, condition):
        if has_begun.is_set():
            return prepare(file, condition)
        has_begun.set()
        may_go_on.wait(20)
        return prepare(file, condition)

    with Serving(prepare=slow) as serving:
        has_begun.set()
        serving.store.load("alice", folders[1])
        has_begun.clear()
        errors = []

        def load():
            try:
                serving.store.load("alice", folders[2], expected_generation=1)
            except Conflict as error:
                errors.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        has_begun.wait(20)
        serving.store.unload("alice")
        may_go_on.set()
        thread.join(20)
        assert errors
        assert serving.store.cards() == []
        serving.store.close()
        assert serving.engine.bank == {}


def test_a_pinned_adapter_is_neither_unloaded_nor_evicted(folders):
    with Serving(budget=2 * SIZE) as serving:
        serving.store.load("alice", folders[1], pinned=True)
        with pytest.raises(Conflict, match="pinned"):
            serving.store.unload("alice")
        serving.store.load("bob", folders[2])
        serving.store.load("carol", folders[3])
        assert serving.numbers == [1, 3]
        serving.store.pin("alice", False)
        serving.store.load("dave", folders[4])
        assert serving.numbers == [3, 4]
        assert serving.store.unload("alice") == 0


def test_the_least_recently_used_leaves_and_comes_back(folders):
    with Serving(budget=2 * SIZE) as serving:
        serving.store.load("alice", folders[1])
        serving.store.load("bob", folders[2])
        acquire(serving.store, "alice").release()
        serving.store.load("carol", folders[3])
        assert serving.states() == {"alice": "resident", "bob": "evicted", "carol": "resident"}
        with serving.store.reserve("bob") as lease:
            assert not lease.is_resident
            lease.ensure()
            assert lease.is_resident
            assert (number(serving, lease), lease.generation.number) == (2, 1)
        assert serving.numbers == [2, 3]
        assert (serving.store.residency.evictions, serving.store.residency.loads) == (2, 4)


def test_the_end_of_a_stream_counts_as_use(folders):
    with Serving(budget=2 * SIZE) as serving:
        serving.store.load("alice", folders[1])
        serving.store.load("bob", folders[2])
        long, short = acquire(serving.store, "alice"), acquire(serving.store, "bob")
        short.release()
        long.release()
        serving.store.load("carol", folders[3])
        assert serving.states() == {"alice": "resident", "bob": "evicted", "carol": "resident"}


def test_a_pin_goes_with_its_generation(folders):
    """Pins are counted for each form: the one of a replaced generation would stay for ever."""
    with Serving(budget=SIZE, patience=0.05) as serving:
        serving.store.load("alice", folders[1], pinned=True)
        serving.store.load("bob", folders[1])
        serving.store.pin("alice", False)
        serving.store.load("carol", folders[2])
        serving.store.load("bob", folders[1], pinned=True)
        serving.store.load("bob", folders[1], pinned=False)
        serving.store.load("carol", folders[2])
        assert serving.numbers == [2]


@pytest.mark.parametrize("is_loaded", [True, False])
def test_nothing_is_loaded_for_a_request_that_was_cancelled(is_loaded, folders):
    with Serving(budget=SIZE) as serving:
        serving.store.load("alice", folders[1])
        lease = serving.store.reserve("alice")
        lease.release()
        serving.store.load("bob", folders[2])  # evicts alice
        if not is_loaded:
            serving.store.unload("alice")
        lease.ensure()
        assert serving.numbers == [2]


def test_what_streams_use_is_not_evicted(folders):
    with Serving(budget=SIZE, patience=0.05) as serving:
        serving.store.load("alice", folders[1])
        lease = acquire(serving.store, "alice")
        with pytest.raises(Unavailable, match="full"):
            serving.store.load("bob", folders[2])
        assert number(serving, lease) == 1
        lease.release()
        serving.store.load("bob", folders[2])
        assert serving.numbers == [2]


def test_a_load_waits_for_room(folders):
    with Serving(budget=SIZE) as serving:
        serving.store.load("alice", folders[1])
        lease = acquire(serving.store, "alice")
        timer = threading.Timer(0.05, lease.release)
        timer.start()
        serving.store.load("bob", folders[2])
        timer.join()
        assert serving.numbers == [2]


def test_an_adapter_above_the_budget_is_refused(folders):
    with (
        Serving(budget=SIZE - 1) as serving,
        pytest.raises(ResourceError, match=r"takes 1,000 bytes, and all adapters may take 999"),
    ):
        serving.store.load("alice", folders[1])


def test_an_evicted_adapter_whose_folder_changed_is_refused(folders, tmp_path):
    """Never other bytes under the same generation."""
    folder = tmp_path / "alice"
    shutil.copytree(folders[1], folder)
    with Serving(budget=SIZE) as serving:
        serving.store.load("alice", folder)
        serving.store.load("bob", folders[2])
        shutil.rmtree(folder)
        shutil.copytree(folders[3], folder)
        with pytest.raises(Unavailable, match="cannot be read again") as raised:
            acquire(serving.store, "alice")
        assert str(tmp_path) not in str(raised.value), "clients do not learn paths"
        card = serving.store.cards()[0]
        assert card.state == "failed"
        assert "holds another adapter than was loaded" in card.warnings[-1]
        shutil.rmtree(folder)
        shutil.copytree(folders[1], folder)
        with acquire(serving.store, "alice") as lease:
            assert number(serving, lease) == 1
        assert serving.states()["alice"] == "resident"


def test_an_evicted_adapter_whose_folder_became_a_link_is_refused(folders, tmp_path):
    """Unless the operator named a link."""
    folder, link = tmp_path / "alice", tmp_path / "carol"
    shutil.copytree(folders[1], folder)
    link.symlink_to(folders[3])
    with Serving(budget=SIZE) as serving:
        serving.store.load("alice", folder)
        serving.store.load("carol", link)
        shutil.rmtree(folder)
        folder.symlink_to(folders[1])
        with pytest.raises(Unavailable, match="cannot be read again"):
            acquire(serving.store, "alice")
        card = next(card for card in serving.store.cards() if card.name == "alice")
        assert "is a link, not a regular" in card.warnings[-1]
        serving.store.load("bob", folders[2])
        acquire(serving.store, "carol").release()


def test_aliases_of_the_same_content_share_its_memory(serving, folders, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(folders[1], copied)
    alice, bob = serving.store.load("alice", folders[1]), serving.store.load("bob", copied)
    assert alice.digest == bob.digest
    assert len(serving.engine.bank) == 1
    assert serving.store.unload("alice") == 0
    with acquire(serving.store, "bob") as lease:
        assert number(serving, lease) == 1
    assert serving.store.unload("bob") == SIZE
    assert serving.engine.bank == {}


def test_one_name_after_another_content_gets_the_new_bytes(serving, folders):
    """Also while the old ones are in use, and in the same folder."""
    serving.store.load("alice", folders[1])
    old = acquire(serving.store, "alice")
    serving.store.unload("alice")
    serving.store.load("alice", folders[2])
    with acquire(serving.store, "alice") as new:
        assert old.key != new.key
        assert (number(serving, old), number(serving, new)) == (1, 2)
    old.release()


def test_names_are_of_one_form_and_not_the_bases(serving, folders):
    for name in ("Alice", "alice/b", "..", "a b", "ä", "a" * 65, "alice\n", "a:b"):
        with pytest.raises(ConfigError, match="cannot be the name of an adapter"):
            serving.store.load(name, folders[1])
    with pytest.raises(Conflict, match="name of the base"):
        serving.store.load("base", folders[1])
    assert serving.store.cards() == []


def test_registered_adapters_are_listed_before_they_are_loaded(serving, folders, tmp_path):
    for name in ("alice", "bob", "carol"):
        serving.store.register(name)
    assert set(serving.states().values()) == {"registered"}
    with pytest.raises(Unavailable, match="not loaded yet"):
        serving.store.reserve("alice")
    with pytest.raises(Conflict, match="taken"):
        serving.store.register("alice")
    serving.store.load("alice", folders[1], expected_generation=0)
    with acquire(serving.store, "alice") as lease:
        assert number(serving, lease) == 1
    with pytest.raises(FileError):
        serving.store.load("carol", tmp_path / "missing", expected_generation=0)
    assert serving.states() == {"alice": "resident", "bob": "registered", "carol": "failed"}
    with pytest.raises(Unavailable, match="could not be loaded"):
        serving.store.reserve("carol")
    assert serving.store.unload("carol") == 0
    assert list(serving.states()) == ["alice", "bob"]
