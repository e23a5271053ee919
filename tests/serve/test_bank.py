"""The bank: rows with different adapters in one batch, the base beside them, and what is freed."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import attached
from lorica.errors import ConfigError
from lorica.formats.adapter_file import read
from lorica.serve.bank import ServingBank
from lorica.serve.prepare import prepare
from lorica.serve.twin import twin
from tests.laws.bases import SIZES, bits, method, move, same_bits, small_llama
from tests.marks import slow_but

IDS = torch.randint(3, 500, (9,), generator=torch.Generator().manual_seed(3))
MIXED = [name for name in Method.names() if name not in ("full", "hyperlora")]


def trained(name, *, dtype=torch.float32, seed=1, **settings):
    targets = {key: settings.pop(key) for key in ("target_modules",) if key in settings}
    model = small_llama().to(dtype)
    lorica.adapt(model, method(name, **settings), **targets)
    return move(model, seed, SIZES.get(name, 0.05)).eval()


class Shop:
    """A served base, and adapters with what each answers alone."""

    def __init__(self, folder: Path, dtype=torch.float32):
        self.folder, self.dtype = folder, dtype
        self.model = small_llama().to(dtype)
        self.twin = twin(self.model)
        self.bank = ServingBank(self.model)
        self.alone = {}
        self.answers = {}  # of the adapters alone

    def stock(self, key, name, seed=1, **settings):
        model = trained(name, dtype=self.dtype, seed=seed, **settings)
        lorica.save(model, self.folder / key)
        self.alone[key] = model
        prepared = prepare(self.twin, read(self.folder / key), tokenizer=None)
        self.bank.add(key, prepared)
        return prepared

    @torch.no_grad()
    def check(self, keys, tokens=1, bound=None):
        """The rows of a batch give what each adapter gives alone, and the base's their bits."""
        bound = bound or (5e-5 if self.dtype == torch.float32 else 0.1)
        ids = torch.stack([IDS.roll(i)[:tokens] for i in range(len(keys))])
        plain = self.model(ids).logits
        with self.bank.acting(keys):
            got = self.model(ids).logits
        for i, key in enumerate(keys):
            if key is None:
                assert torch.equal(got[i], plain[i]), f"row {i} of the base"
                continue
            if (key, i, tokens) not in self.answers:
                self.answers[key, i, tokens] = self.alone[key](ids[i : i + 1]).logits[0]
            want = self.answers[key, i, tokens]
            assert (got[i] - want).abs().max() <= bound, key
            assert (got[i] - plain[i]).abs().max() > 0.1, f"{key} does nothing"


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture(scope="module")
def full_shop(tmp_path_factory):
    """One adapter of every method that can be mixed."""
    shop = Shop(tmp_path_factory.mktemp("shop"))
    for name in MIXED:
        shop.stock(name, name)
    return shop


@pytest.mark.parametrize("tokens", [1, 9])
def test_every_method_beside_every_other(full_shop, tokens):
    full_shop.check([None, *MIXED, None], tokens)


@pytest.mark.parametrize("name", MIXED)
def test_every_method_beside_the_base(full_shop, name):
    for tokens in (1, 9):
        full_shop.check([None, name, None, name], tokens)
        full_shop.check([name, name], tokens)


def test_rows_that_all_have_something_in_front(full_shop):
    full_shop.check(["prompt_tuning", "prefix_tuning", "prompt_tuning", "prefix_tuning"], 9)


LAYOUTS = {
    "one": ["a", "a", "a"],
    "each": ["c", "a", "b"],
    "grouped": ["b", "a", "b", "c", "a", "b"],
    "one and the base": [None, "a", "a", None],
    "each and the base": ["a", None, "d", "c"],
    "grouped and the base": ["b", None, "a", "d", "b", "b", None],
}


KINDS = [(torch.float32, 0), (torch.bfloat16, 0), (torch.bfloat16, 4)]


@pytest.mark.parametrize(
    ("tokens", "dtype", "wide_rows"),
    slow_but(
        [(1, torch.float32, 0), (5, torch.bfloat16, 4)],
        [(tokens, *kind) for tokens in (1, 5) for kind in KINDS],
    ),
    ids=str,
)
def test_every_layout(tmp_path, dtype, wide_rows, tokens):
    """Ranks that differ, DoRA beside LoRA, a bias, and layers that not every adapter has."""
    shop = Shop(tmp_path, dtype)
    shop.bank.wide_rows = wide_rows
    shop.stock("a", "lora", r=8, lora_bias=True)
    shop.stock("b", "dora", seed=2, r=4)
    shop.stock("c", "lora", seed=3, r=2, target_modules=["q_proj", "up_proj", "lm_head"])
    shop.stock("d", "dora", seed=4, target_modules=["v_proj"])
    for keys in LAYOUTS.values():
        shop.check(keys, tokens)


@torch.no_grad()
def test_rows_that_come_and_go(shop):
    """The stack is changed in place, place by place: each batch is right whatever was before it."""
    for i in range(6):
        shop.stock(f"k{i}", "lora", seed=i, r=1 + i % 3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        n = int(torch.randint(1, 8, (), generator=draw))
        rows = torch.randint(-1, 6, (n,), generator=draw).tolist()
        shop.check([None if k < 0 else f"k{k}" for k in rows])


def references(bank, key):
    """Weak references to every tensor of a resident adapter."""
    stacks = [hook.stack for hook in bank.hooks.values()]
    tensors = [t for stack in stacks if key in stack.forms for t in stack.forms[key].tensors]
    if key in bank.names:
        tensors += attached(bank.model, bank.names[key]).adapters.values()
    return [weakref.ref(t) for t in tensors]


@torch.no_grad()
def test_what_is_removed_is_freed(shop):
    """No batch, no stack and no hook keeps a tensor of it; the others go on."""
    for name in ("lora", "dora", "ia3", "prompt_tuning"):
        shop.stock(name, name)
    shop.stock("stays", "lora", seed=2)
    keys = ["lora", "dora", None, "ia3", "prompt_tuning", "stays"]
    shop.check(keys)
    shop.check(["lora", "lora"])
    model = shop.model
    before = bits(model)
    for name in ("lora", "dora", "ia3", "prompt_tuning"):
        resident, own = shop.bank.resident[name], references(shop.bank, name)
        assert own and shop.bank.remove(name) == resident > 0
        gc.collect()
        assert not [ref for ref in own if ref() is not None], name
        with pytest.raises(ConfigError, match=f"'{name}' is resident"):
            shop.bank.acting([name]).__enter__()
        shop.check(["stays", None])
    shop.bank.remove("stays")
    assert not shop.bank.resident and not shop.bank.hooks
    assert same_bits(bits(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_key_is_resident_once(shop):
    prepared = shop.stock("a", "lora")
    assert shop.bank.resident == {"a": prepared.bytes}
    with pytest.raises(ConfigError, match="resident already"):
        shop.bank.add("a", prepared)
    with pytest.raises(ConfigError, match="no adapter with the key 'b'"):
        shop.bank.remove("b")


@torch.no_grad()
def test_another_number_of_rows_is_refused(shop):
    shop.stock("a", "lora")
    with (
        shop.bank.acting(["a", None]),
        pytest.raises(ConfigError, match=r"2 rows, and layer .* received"),
    ):
        shop.model(IDS.view(1, -1))
    assert torch.equal(shop.model(IDS.view(1, -1)).logits, small_llama()(IDS.view(1, -1)).logits)
