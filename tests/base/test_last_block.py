"""The last block, given only the positions that are read: the loss and gradients stay the same."""

from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica.base.last_block import LABEL_POSITIONS, LabelPositions, _Call, last_block_of
from lorica.base.packing import packed
from lorica.base.quantise import quantise
from lorica.base.tail import tail_of
from lorica.core.adapter import Method
from lorica.core.attach import routed
from lorica.core.bank import bank_of
from lorica.core.route import BASE, BySegment, Segment
from lorica.data.batch import Batch, concatenate, pack, pad
from lorica.data.example import Example
from lorica.training.objective import MAX_LABEL_SHARE, Objective
from tests.base.architectures import tiny as architecture
from tests.core.attention_models import EAGER, GROUPED, MODELS, SIZE, tiny
from tests.laws.bases import SIZES, move
from tests.training.test_same_work import exact

OTHERS: dict[str, dict[str, Any]] = {
    "Gemma2": {**MODELS["Gemma2"], "sliding_window": 16},  # in float64 no row may see nothing
    "Phi": SIZE,  # one norm before both sublayers, as GPTNeoX has two
    "Phi3": GROUPED,  # output projection before query, keys and values, which are one layer
    "Mixtral": GROUPED,
    "Qwen3Moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
}
FLOAT32 = ("GptOss", "Mixtral", "Qwen3Moe")  # their experts refuse float64
SMALL: dict[str, dict[str, Any]] = {
    "llama_adapter": {"adapter_len": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "mora": {"r": 4},
    "vera": {"r": 4},
}
QUICK = ("Llama", "GPT2", "Mixtral")
ACTING = ("lora", "dora", "bottleneck", "llama_adapter", "prompt_tuning", "full")


def rows() -> list[Example]:
    """Rows that begin alike, two of them to their last token but one; answers are half of them."""
    draw = torch.Generator().manual_seed(3)
    begins = [*range(10, 19)]
    examples = []
    for k, n in enumerate((1, 1, 5, 3, 7)):
        ids = [*begins[: 9 if k < 3 else 2], *torch.randint(1, 96, (n,), generator=draw).tolist()]
        half = len(ids) // 2 + 1
        examples.append(Example(ids, [t >= half for t in range(len(ids))], f"row {k}"))
    return examples


def laid(how: str) -> Batch:
    return pad(rows(), 0) if how == "padded" else pack(rows(), share_prefixes=how == "shared")


def model_of(base: str, name: str = "lora", **settings: object) -> nn.Module:
    """In float64, with an adapter that has moved; without dropout also in training."""
    MODELS.setdefault(base, OTHERS.get(base, SIZE))
    model: Any = tiny(base, **OTHERS.get(base, {}))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    method = Method.named(name)(**{**SMALL.get(name, {}), **settings})
    move(lorica.adapt(model, method), size=SIZES.get(name, 0.05))
    if base in FLOAT32:
        return model
    if base != "Gemma2":  # whose norms are others
        exact(model)
    return model.double()


def step(model: nn.Module, how: str, **options: bool) -> list[Tensor]:
    """The loss of a batch, and the gradient of everything that is trained."""
    by_row = how != "padded"
    objective = Objective(model, packed=by_row, **options)
    assert objective.tail is not None
    assert (objective.last is None) == options.get("all_positions", False)
    model.zero_grad()
    with packed(model) if by_row else nullcontext(), objective.hooked():
        loss = objective(laid(how))
        loss.backward()
    learned = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *(p.new_zeros(()) if p.grad is None else p.grad for p in learned)]


def check_same(model: nn.Module, how: str) -> None:
    want, got = step(model, how, all_positions=True), step(model, how)
    close = 1e-10 if want[0].dtype == torch.float64 else 1e-4
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=close, rtol=close)


def quick(base: str, how: str) -> bool:
    return base == "Llama" or (base in QUICK and how == "shared")


def cases() -> list:
    """(base, method, layout): some attentions take padded rows alone, and bottleneck no experts."""
    every = product(sorted({*MODELS, *OTHERS}), ACTING, ("packed", "padded", "shared"))
    return [
        pytest.param(base, name, how, marks=[] if quick(base, how) else pytest.mark.slow)
        for base, name, how in every
        if (how == "padded" or base not in EAGER) and not (name == "bottleneck" and base in FLOAT32)
    ]


@pytest.mark.parametrize("base, name, how", cases())
def test_the_loss_and_its_gradients_stay(base, name, how):
    check_same(model_of(base, name), how)


@pytest.mark.parametrize("name", [n for n in Method.names() if n not in (*ACTING, "hyperlora")])
def test_every_method_keeps_its_gradients(name):
    check_same(model_of("Llama", name), "packed")


@pytest.mark.parametrize("how", ["packed", "padded"])
@pytest.mark.parametrize("name", ["lora", "llama_adapter", "full"])
@pytest.mark.parametrize("base", ["Llama", "GPTNeoX", "GPT2"])
def test_what_is_computed_again_in_the_backward_pass_stays(base, name, how):
    model: Any = model_of(base, name)
    want = step(model.eval(), how, all_positions=True)
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    calls = counted(model)
    got = step(model.train(), how)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    assert calls.count(len(laid(how).label_positions)) == 2


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("base", ["Llama", "GPTNeoX", "GPT2"])
def test_segments_keep_their_adapters(base, shared):
    model = model_of(base)
    lorica.adapt(model, lorica.Dora(r=2), name="other", seed=1)
    move(model.double(), seed=2)
    batches = [pack(rows(), share_prefixes=shared), pack(rows()[::-2], share_prefixes=shared)]
    sizes = tuple(b.input_ids.numel() for b in batches)
    route = BySegment((Segment(("other",)), Segment(("default",))), sizes)
    results, calls = [], counted(model)
    for whole in (True, False):
        objective = Objective(model, packed=True, all_positions=whole)
        calls.clear()
        model.zero_grad()
        with packed(model), routed(model, route), objective.hooked():
            losses = objective(concatenate(batches), [len(b.targets) for b in batches])
            losses.sum().backward()
            assert bank_of(model).route is route, "as it was, for a recomputation"
        read = len(concatenate(batches).label_positions.unique())
        assert calls == [sum(sizes) if whole else read]
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g is not None for g in gradients)
        results.append([losses.detach(), *gradients])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def counted(model: nn.Module) -> list[int]:
    """Tokens that the feed-forward layer of the last block is given, call by call, from now on."""
    calls: list[int] = []
    mlps = [m for n, m in model.named_modules() if n.endswith(".mlp")]
    forward = mlps[-1].forward

    def counting(x: Tensor) -> Tensor:
        calls.append(x.shape[:-1].numel())
        return forward(x)

    mlps[-1].forward = counting  # type: ignore[method-assign]
    return calls


@pytest.mark.parametrize("base", ["Llama", "Gemma2", "Mixtral", "GPT2"])
def test_the_last_block_sees_what_is_read(base):
    model = model_of(base)
    objective = Objective(model, packed=False)
    calls = counted(model)
    batch = laid("padded")
    with objective.hooked():
        objective(batch)
    assert calls == [len(batch.label_positions)]
    assert len(batch.label_positions) < 0.5 * batch.input_ids.numel()
    model(input_ids=batch.input_ids)  # an evaluation, say, is not touched
    assert calls[1:] == [batch.input_ids.numel()]


def test_adapters_of_these_layers_see_what_is_read(monkeypatch):
    model: Any = model_of("Llama")
    objective, batch, seen = Objective(model, packed=False), laid("padded"), {}
    attention = model.model.layers[-1].self_attn
    for leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
        adapter = getattr(attention, leaf).adapters["default"]
        monkeypatch.setattr(adapter, "before", lambda x, n=leaf: seen.update({n: x.shape[:2]}) or x)
        monkeypatch.setattr(adapter, "acts_before", True)
    with objective.hooked():
        objective(batch)
    every, read = batch.input_ids.shape, (1, len(batch.label_positions))
    assert seen == {"q_proj": read, "k_proj": every, "v_proj": every, "o_proj": read}


def test_positions_behind_which_several_rows_go_on_are_seen_once():
    batch, model = laid("shared"), model_of("Llama")
    assert len(batch.label_positions.unique()) < len(batch.label_positions)
    objective, calls = Objective(model, packed=True), counted(model)
    with packed(model), objective.hooked():
        objective(batch)
    assert calls == [len(batch.label_positions.unique())]


def test_where_almost_everything_is_read_the_block_sees_all():
    ids = list(range(3, 13))
    model = model_of("Llama")
    objective, calls = Objective(model, packed=False), counted(model)
    for unread in (1, 3):
        learned = [t > unread for t in range(10)]
        with objective.hooked():
            objective(pad([Example(ids, learned, "one")], 0))
    assert 8 / 10 <= MAX_LABEL_SHARE < 9 / 10
    assert calls == [8, 6]


def test_a_batch_without_labels_is_left_alone():
    model = model_of("Llama")
    objective, calls = Objective(model, packed=False), counted(model)
    with objective.hooked():
        objective(pad([Example([3, 4, 5], [False] * 3, "one")], 0))
    assert calls == [3]


@pytest.mark.parametrize("how", ["packed", "padded"])
def test_adapters_that_are_told_conditions_see_every_position(how):
    """They count tokens: the last block is left whole, and the loss is that of each row alone."""
    model = model_of("Llama", "hyperlora", r=2, conditions=("a", "b"))
    examples = [
        Example(r.ids, r.learned, r.where, condition="ab"[i % 2]) for i, r in enumerate(rows())
    ]
    objective = Objective(model, packed=how == "packed")
    assert objective.last is None
    alone = sum(Objective(model, packed=False)(pad([row], 0)) for row in examples)
    if how == "packed":
        with packed(model):
            together = objective(pack(examples))
    else:
        together = objective(pad(examples, 0))
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", ["bfloat16", "nf4", "int8"])
def test_coarse_bases_are_taken(kind):
    """What they round differently for fewer positions is no difference."""
    model: Any = tiny("Llama", hidden_size=64, intermediate_size=64)
    if kind == "bfloat16":
        model = model.bfloat16()
    else:
        for parent in [m for m in model.modules() if "MLP" in type(m).__name__]:
            for leaf in ("gate_proj", "up_proj", "down_proj"):
                setattr(parent, leaf, quantise(getattr(parent, leaf), kind))
    for by_row in (False, True):
        assert last_block_of(model, decoder_of(model), by_row=by_row) is not None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_part_of_a_block_sees_the_positions_of_the_batch_before(checkpointing):
    """Gemma 3n calls layers of a block before its attention; a recomputation meets them again."""
    model = lorica.adapt(architecture("gemma3n"), lorica.Lora(r=2), target_modules=["q_proj"])
    move(model, size=0.05)
    objective, whole = (
        Objective(model, packed=True, all_positions=whole) for whole in (False, True)
    )
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    with packed(model):
        for batch in (pack(rows()[:3]), pack(rows()[3:]), pack(rows())):
            with objective.hooked():
                loss = objective(batch)
                loss.backward()
            torch.testing.assert_close(loss, whole(batch), atol=1e-5, rtol=1e-5)


def decoder_of(model: nn.Module) -> nn.Module:
    tail = tail_of(model)
    assert tail is not None
    return tail.decoder


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Neighbours(nn.Module):
    """A feed-forward layer that looks at the position before."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + x.roll(1, dims=1))


class Stubborn(Neighbours):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 6:
            raise RuntimeError("too short")
        return self.inner(x)


@pytest.mark.parametrize("kind", [Neighbours, Stubborn])
def test_a_block_that_cannot_do_with_less_is_left_alone(kind):
    model: Any = tiny("Llama")
    model.model.layers[-1].mlp = kind(model.model.layers[-1].mlp)
    before = hooks(model)
    assert last_block_of(model, decoder_of(model), by_row=False) is None
    assert hooks(model) == before


def test_a_block_that_is_not_the_last_is_left_alone():
    """A layer behind it that mixes positions, and is no attention by its looks."""
    model: Any = tiny("Llama")
    last = model.model.layers[-1]
    del last.self_attn.is_causal
    assert last_block_of(model, decoder_of(model), by_row=False) is None


def test_a_model_without_attention_is_left_alone():
    MODELS.setdefault("Mamba", SIZE)
    model = tiny("Mamba")
    assert last_block_of(model, decoder_of(model), by_row=False) is None


def test_gradients_that_are_wrong_are_found(monkeypatch):
    """Values alone do not tell: half of the gradient is lost here."""
    scattered = _Call._scattered

    def halved(self: _Call, y: Tensor) -> Tensor:
        return scattered(self, y / 2 + y.detach() / 2)

    monkeypatch.setattr(_Call, "_scattered", halved)
    model = tiny("Llama")
    assert last_block_of(model, decoder_of(model), by_row=False) is None


def test_an_error_in_the_block_leaves_nothing_behind():
    model: Any = tiny("Llama")
    block = last_block_of(model, decoder_of(model), by_row=False)
    assert block is not None
    mlp = model.model.layers[-1].mlp
    handle = mlp.act_fn.register_forward_hook(lambda *_: 1 / 0)
    ids = torch.arange(3, 9).unsqueeze(0)
    labels = {LABEL_POSITIONS: LabelPositions(torch.tensor([1, 2]), BASE)}
    with pytest.raises(ZeroDivisionError), block.hooked(bank_of(model)):
        model.model(input_ids=ids, use_cache=False, **labels)
    handle.remove()
    assert hooks(model) == 0
    torch.testing.assert_close(model(ids).logits, tiny("Llama")(ids).logits, atol=0, rtol=0)
