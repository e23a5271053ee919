"""The store against a model of plain Python, over any sequence of what operators, requests and the
disk may do."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorica.errors import FileError
from lorica.serve.refusals import Conflict, ModelNotFound, Unavailable
from tests.marks import at_length
from tests.serve.fake_engine import SIZE, Serving, acquire, write_adapter, write_conditioned

ROOM = 2
"""Forms that the bank has room for. There are four."""
CONDITIONS = {3: ("x", "y")}
ALIASES = st.sampled_from(["alice", "bob"])
FOLDERS = st.sampled_from([1, 2, 3])
Form = tuple[int, str | None]
"""The content of an adapter, and a condition."""


def forms_of(content: int) -> list[Form]:
    return [(content, condition) for condition in CONDITIONS.get(content, (None,))]


@dataclass(eq=False)
class Held:
    """What is expected of a lease. is_ensured: its form must be in the bank."""

    lease: object
    form: Form
    alias: str
    number: int
    folder: int
    is_ensured: bool


@dataclass
class Expected:
    """An alias. live: (content, number, folder)."""

    live: tuple[int, int, int] | None = None
    last: int = 0
    pinned: bool = False
    is_registered: bool = False
    has_failed: bool = False
    is_lost: bool = False

    @property
    def is_listed(self) -> bool:
        return self.live is not None or self.is_registered


@dataclass
class Bank:
    """What is resident, and when it was used last."""

    used: dict[Form, int] = field(default_factory=dict)
    resident: set[Form] = field(default_factory=set)
    ticks: int = 0

    def use(self, form: Form) -> None:
        self.ticks += 1
        self.used[form] = self.ticks


class StoreStates(RuleBasedStateMachine):
    contents: dict[int, Path]
    root: Path

    def __init__(self):
        super().__init__()
        self.serving = Serving(budget=ROOM * SIZE, patience=0.01)
        self.store = self.serving.store
        self.aliases: dict[str, Expected] = {}
        self.held: list[Held] = []
        self.bank = Bank()
        self.holds: dict[int, int | None] = {}
        for folder in self.contents:
            self.put(folder, folder)

    def teardown(self):
        for held in self.held:
            held.lease.release()  # type: ignore[attr-defined]
        for alias, entry in self.aliases.items():
            if entry.is_listed:
                self.store.pin(alias, False)
                self.store.unload(alias)
        self.wait()
        assert self.serving.engine.bank == {}
        assert self.store.residency.total == 0
        assert self.store.residency._forms == {}
        self.serving.__exit__()

    # -- the model ----------------------------------------------------------------------------

    def entry(self, alias: str) -> Expected:
        return self.aliases.setdefault(alias, Expected())

    def owned(self) -> dict[Form, bool]:
        """Forms of live generations, and whether they are pinned."""
        owned: dict[Form, bool] = {}
        for entry in self.aliases.values():
            for form in forms_of(entry.live[0]) if entry.live else ():
                owned[form] = owned.get(form, False) or entry.pinned
        return owned

    def leased(self) -> set[Form]:
        return {held.form for held in self.held}

    def drop_unused(self) -> None:
        self.bank.resident &= self.owned().keys() | self.leased()

    def enters(self, form: Form) -> bool:
        """Let `form` into the bank. Returns: whether there is room."""
        if form in self.bank.resident:
            return True
        pinned = {form for form, is_pinned in self.owned().items() if is_pinned}
        idle = sorted(self.bank.resident - self.leased() - pinned, key=self.bank.used.__getitem__)
        leaving = idle[: max(0, len(self.bank.resident) + 1 - ROOM)]
        if len(self.bank.resident) - len(leaving) + 1 > ROOM:
            return False
        self.bank.resident -= set(leaving)
        self.bank.resident.add(form)
        return True

    def wait(self) -> None:
        """Until nothing is on its way out of the bank."""
        while any(form.state == "removing" for form in self.store.residency._forms.values()):
            time.sleep(0.0002)

    def put(self, folder: int, content: int | None) -> None:
        """Let a folder hold a content, or none."""
        link = self.root / str(folder)
        link.unlink(missing_ok=True)
        link.symlink_to(self.contents.get(content or 0, self.root / "nothing"))
        self.holds[folder] = content

    # -- operators ----------------------------------------------------------------------------

    @rule(
        alias=ALIASES,
        folder=FOLDERS,
        expected=st.sampled_from([None, None, "right", "wrong"]),
        pinned=st.sampled_from([None, None, True, False]),
    )
    def load(self, alias, folder, expected, pinned):
        entry = self.entry(alias)
        number = entry.live[1] if entry.live else 0
        wanted = {None: None, "right": number, "wrong": number + 1}[expected]
        self.try_load(alias, folder, wanted, pinned)

    def try_load(self, alias, folder, wanted, pinned):
        entry, content = self.entry(alias), self.holds[folder]
        error = None
        if wanted not in (None, entry.live[1] if entry.live else 0):
            error = Conflict
        elif content is None:
            error = FileError
        else:
            form = forms_of(content)[0]
            self.bank.use(form)
            if not self.enters(form):
                error = Unavailable
            else:
                pinned_now = entry.pinned if pinned is None else pinned
                entry.last += 1
                entry.live, entry.pinned = (content, entry.last, folder), pinned_now
                entry.is_registered, entry.has_failed, entry.is_lost = False, False, False
            self.bank.use(form)
            self.drop_unused()
        arguments = {"expected_generation": wanted, "pinned": pinned}
        if error is None:
            generation = self.store.load(alias, self.root / str(folder), **arguments)
            assert generation.number == entry.last
        else:
            entry.has_failed = entry.has_failed or error is not Conflict
            with pytest.raises(error):
                self.store.load(alias, self.root / str(folder), **arguments)

    @rule(alias=ALIASES, folder=FOLDERS)
    def replace(self, alias, folder):
        self.try_load(alias, folder, None, None)

    @rule(alias=ALIASES, folder=FOLDERS)
    def reload(self, alias, folder):
        self.put(folder, folder)
        self.try_load(alias, folder, None, None)

    @rule(alias=ALIASES)
    def register(self, alias):
        entry = self.entry(alias)
        if entry.is_listed:
            with pytest.raises(Conflict):
                self.store.register(alias)
            return
        self.store.register(alias)
        entry.is_registered, entry.pinned, entry.has_failed = True, False, False

    @rule(alias=ALIASES, expected=st.sampled_from([None, "right", "wrong"]))
    def unload(self, alias, expected):
        entry = self.entry(alias)
        number = entry.live[1] if entry.live else 0
        wanted = {None: None, "right": number, "wrong": number + 1}[expected]
        if not entry.is_listed:
            error = ModelNotFound
        elif entry.pinned or expected == "wrong":
            error = Conflict
        else:
            before = set(self.bank.resident)
            entry.live, entry.is_registered = None, False
            entry.has_failed = entry.is_lost = False
            self.drop_unused()
            freed = self.store.unload(alias, expected_generation=wanted)
            assert freed == SIZE * len(before - self.bank.resident)
            return
        with pytest.raises(error):
            self.store.unload(alias, expected_generation=wanted)

    @rule(alias=ALIASES, pinned=st.booleans())
    def pin(self, alias, pinned):
        if not self.entry(alias).is_listed:
            with pytest.raises(ModelNotFound):
                self.store.pin(alias, pinned)
            return
        self.store.pin(alias, pinned)
        self.entry(alias).pinned = pinned

    # -- the disk -----------------------------------------------------------------------------

    @rule(folder=FOLDERS, content=st.sampled_from([None, 1, 2, 3]))
    def change(self, folder, content):
        self.put(folder, content)

    @rule(folder=FOLDERS)
    def repair(self, folder):
        self.put(folder, folder)

    # -- requests -----------------------------------------------------------------------------

    @rule(alias=ALIASES, condition=st.sampled_from(["x", "y"]))
    def reserve(self, alias, condition):
        live = self.entry(alias).live
        self.try_reserve(alias, condition if live and live[0] in CONDITIONS else None)

    @rule(alias=ALIASES, condition=st.sampled_from([None, "x", "z"]))
    def reserve_any(self, alias, condition):
        self.try_reserve(alias, condition)

    def try_reserve(self, alias, condition):
        entry = self.entry(alias)
        model = alias if condition is None else f"{alias}:{condition}"
        if not entry.is_listed:
            error = ModelNotFound
        elif entry.live is None:
            error = Unavailable
        elif (entry.live[0], condition) not in forms_of(entry.live[0]):
            error = ModelNotFound
        else:
            content, number, folder = entry.live
            lease = self.store.reserve(model)
            assert lease.generation.number == number
            form = content, condition
            self.bank.use(form)
            is_resident = form in self.bank.resident
            self.held.append(Held(lease, form, alias, number, folder, is_resident))
            return
        with pytest.raises(error):
            self.store.reserve(model)

    @precondition(lambda self: any(not held.is_ensured for held in self.held))
    @rule(index=st.integers(0, 9))
    def ensure(self, index):
        waiting = [held for held in self.held if not held.is_ensured]
        held = waiting[index % len(waiting)]
        entry = self.entry(held.alias)
        is_live = entry.live is not None and entry.live[1] == held.number
        if held.form in self.bank.resident:
            held.lease.ensure()
        elif self.holds[held.folder] != held.form[0]:
            entry.is_lost = entry.is_lost or is_live
            with pytest.raises(Unavailable, match="cannot be read again"):
                held.lease.ensure()
            return
        elif self.enters(held.form):
            held.lease.ensure()
        else:
            with pytest.raises(Unavailable, match="full"):
                held.lease.ensure()
            return
        held.is_ensured = True
        entry.is_lost = entry.is_lost and not is_live

    @rule(alias=ALIASES)
    def acquire(self, alias):
        """And release."""
        entry = self.entry(alias)
        if entry.live is None and entry.is_registered:
            with pytest.raises(Unavailable):
                acquire(self.store, alias)
            return
        if entry.live is None or entry.live[0] in CONDITIONS:
            with pytest.raises(ModelNotFound):
                acquire(self.store, alias)
            return
        form = entry.live[0], None
        fits = form in self.bank.resident or self.holds[entry.live[2]] == form[0]
        self.bank.use(form)
        if not fits:
            entry.is_lost = True
            with pytest.raises(Unavailable):
                acquire(self.store, alias)
        elif not self.enters(form):
            with pytest.raises(Unavailable):
                acquire(self.store, alias)
        else:
            entry.is_lost = False
            with acquire(self.store, alias) as lease:
                assert self.serving.engine.bank[lease.key].number == form[0]
        self.bank.use(form)
        self.drop_unused()

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 9))
    def release(self, index):
        held = self.held[index % len(self.held)]
        held.lease.release()
        held.lease.release()
        self.held.remove(held)
        self.bank.use(held.form)
        self.drop_unused()

    # -- what always holds --------------------------------------------------------------------

    @invariant()
    def the_bank_holds_what_it_should(self):
        self.wait()
        bank = self.serving.engine.bank
        assert sorted((c.number, c.condition or "") for c in bank.values()) == sorted(
            (content, condition or "") for content, condition in self.bank.resident
        )
        assert self.store.residency.total == SIZE * len(bank) <= ROOM * SIZE
        for held in self.held:
            if held.is_ensured:
                content = bank[held.lease.key]  # type: ignore[attr-defined]
                assert (content.number, content.condition) == held.form

    @invariant()
    def the_cards_say_so(self):
        states = {card.name: (card.state, card.generation) for card in self.store.cards()}
        expected = {}
        for alias, entry in self.aliases.items():
            if entry.live is not None:
                is_resident = any(f in self.bank.resident for f in forms_of(entry.live[0]))
                lost = "failed" if entry.is_lost else "evicted"
                expected[alias] = "resident" if is_resident else lost, entry.live[1]
            elif entry.is_registered:
                expected[alias] = "failed" if entry.has_failed else "registered", 0
        assert states == expected, (states, expected)
        live = {(a, e.live[1]) for a, e in self.aliases.items() if e.live}
        draining = {(held.alias, held.number) for held in self.held} - live
        assert {(card.name, card.generation) for card in self.store.draining()} == draining


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    root = tmp_path_factory.mktemp("states")
    contents = {n: write_adapter(root / f"content{n}", n) for n in (1, 2)}
    contents[3] = write_conditioned(root / "content3", 3, CONDITIONS[3])
    return type("States", (StoreStates,), {"contents": contents, "root": root})


def run(states, examples: int, steps: int) -> None:
    """By hypothesis, which shortens a sequence that fails."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    states.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
    )
    states.TestCase("runTest").runTest()


def walk(states, seed: int, steps: int) -> None:
    """A random walk, evenly over rules and values: hypothesis likes to repeat itself."""
    machine, draw = states(), random.Random(seed)
    aliases, folders = ["alice", "bob"], [1, 2, 3]
    for _ in range(steps):
        alias, folder = draw.choice(aliases), draw.choice(folders)
        match draw.randrange(12):
            case 0:
                expected, pinned = (
                    draw.choice([None, "right", "wrong"]),
                    draw.choice([None, None, True]),
                )
                machine.load(alias, folder, expected, pinned)
            case 1 | 2:
                machine.reload(alias, folder)
            case 3:
                machine.pin(alias, draw.random() < 0.15)
            case 4:
                machine.change(folder, draw.choice([None, *folders]))
            case 5:
                machine.unload(alias, None)
                if draw.random() < 0.5:
                    machine.register(alias)
            case 6:
                machine.acquire(alias)
            case 7 | 10:
                machine.reserve(alias, draw.choice("xy"))
            case 8 | 11:
                if any(not held.is_ensured for held in machine.held):
                    machine.ensure(draw.randrange(9))
            case 9:
                if machine.held:
                    machine.release(draw.randrange(9))
        machine.the_bank_holds_what_it_should()
        machine.the_cards_say_so()
    machine.teardown()


def test_any_sequence(states):
    run(states, 20, 25)


@pytest.mark.parametrize("seed", range(2))
def test_a_random_walk(states, seed):
    walk(states, seed, 300)


@pytest.mark.slow
def test_long_sequences(states):
    run(states, at_length(150, 40), 50)
    for seed in range(100, at_length(130, 108)):
        walk(states, seed, 500)
