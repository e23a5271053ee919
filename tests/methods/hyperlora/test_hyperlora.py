"""HyperLoRA: the properties of the specification, mixed rows, every kind of condition, resuming."""

import copy
import math
import random

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.base.condition_texts import encode_conditions
from lorica.core.bank import attached
from lorica.core.condition import (
    set_conditions,
    swapped_conditions,
    unused_conditions,
    with_conditions,
)
from lorica.core.drive import Driver
from lorica.core.site import hidden_size_of
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, DataError, MergeError
from lorica.methods.hyperlora import Hyperlora
from lorica.methods.hyperlora.penalty import MAX_CONDITIONS
from tests.laws.bases import IDS, Stack, bits, move, same_bits
from tests.methods.llama import llama

TASKS = ("add", "sort", "turn")
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(7))


def made(method: Hyperlora | None = None, **settings) -> nn.Module:
    """`Stack` with a small HyperLoRA that knows TASKS."""
    small = {"r": 3, "latent": 16, "hidden": 6, "conditions": TASKS, **settings}
    return lorica.adapt(Stack(), method or Hyperlora(**small))


def network(model: nn.Module):
    return next(iter(attached(model, "default").adapters.values())).network


def at(model: nn.Module, conditions, x: torch.Tensor = X) -> torch.Tensor:
    with with_conditions(model, conditions):
        return model(x)


# -- the start, and the first steps ---------------------------------------------------------


def test_every_condition_starts_as_the_base_with_the_same_a():
    model, base = made(), Stack()(X)
    for task in TASKS:
        assert torch.equal(at(model, [task]), base)
    assert torch.equal(at(model, TASKS), base)
    starts = []
    for task in TASKS:
        with with_conditions(model, [task]):
            starts.append([a.factors() for a in attached(model, "default").adapters.values()])
    for first, *others in zip(*starts, strict=True):
        assert not first[1].any()
        assert first[0].abs().max() > 0
        for other in others:
            assert torch.equal(first[0], other[0])


def test_the_bias_of_a_is_a_loras_start():
    layer = nn.Linear(400, 30)
    model = lorica.adapt(nn.Sequential(layer), Hyperlora(r=8, hidden=8, latent=16))
    (head,) = network(model).heads.values()
    bound = head.bias_a.abs().max().item()
    assert 0.045 < bound <= 1 / math.sqrt(400)
    assert abs(head.bias_a.std().item() - 1 / math.sqrt(3 * 400)) < 0.002
    for zero in (head.weight_a, head.weight_b, head.bias_b):
        assert not zero.any()


def test_the_branch_by_hand():
    """s = 6 / 2; A = W_A u + b_A with the network's own u."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), Hyperlora(r=2, alpha=6, latent=8, hidden=4))
    (head,) = network(model).heads.values()
    with torch.no_grad():
        head.bias_a.copy_(torch.tensor([[1.0, 2, 3, 4]]))  # rows of A
        head.bias_b.copy_(torch.tensor([[1.0, 0, 2, 1]]))  # rows of B
    want = 3 * torch.tensor([3.0, 2 * 3 + 7])  # A (1, 1) = (3, 7)
    torch.testing.assert_close(model(torch.ones(2)), want)
    seen = []
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    move(model, 3, 0.1)
    with torch.no_grad():
        got = model(torch.ones(2))
    u = seen[0] / 4
    a, b = (
        (u @ w.T + bias).view(2, 2)
        for w, bias in ((head.weight_a, head.bias_a), (head.weight_b, head.bias_b))
    )
    torch.testing.assert_close(got, 3 * b @ a @ torch.ones(2))


def test_the_first_step_moves_the_heads_of_b_alone_and_then_all_move():
    model = made()
    own = dict(network(model).named_parameters())
    set_conditions(model, TASKS)
    (model(X) - X.flip(1)).square().sum().backward()
    moves = {key for key, p in own.items() if p.grad is not None and p.grad.any()}
    heads = network(model).heads
    assert moves == {f"heads.{head}.{p}_b" for head in heads for p in ("weight", "bias")}
    assert all(p.grad is not None for p in own.values())
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    (model(X) - X.flip(1)).square().sum().backward()
    assert [key for key, p in own.items() if not p.grad.any()] == []


def test_the_gradient_of_the_weight_of_b_is_that_of_b_times_u():
    model = lorica.adapt(nn.Sequential(nn.Linear(5, 4)), Hyperlora(r=2, latent=8, hidden=3))
    (head,) = network(model).heads.values()
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach() / 3))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    g = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    (model(x) * g).sum().backward()
    g_b = 2.0 * g.T @ (x @ head.bias_a.detach().view(2, 5).T)  # (O, R)
    torch.testing.assert_close(head.weight_b.grad, torch.outer(g_b.flatten(), seen[0][0]))
    torch.testing.assert_close(head.bias_b.grad, g_b.flatten()[None])


def test_the_biases_alone_are_a_lora_step_for_step():
    """At every layer, also where several share a head."""
    hyper, plain = made(penalty=0.0), lorica.adapt(Stack(), Lora(r=3))
    for name, parameter in network(hyper).named_parameters():
        parameter.requires_grad_(name.endswith((".bias_a", ".bias_b")))
    pairs = []
    for name, adapter in attached(plain, "default").adapters.items():
        place = attached(hyper, "default").adapters[name].place
        head = network(hyper).heads[place.head]
        a, b = head.bias_a[place.number].view(3, -1), head.bias_b[place.number].view(-1, 3)
        with torch.no_grad():
            adapter.a.copy_(a)
        pairs += [(adapter.a, a), (adapter.b, b)]
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.02)
        for m in (hyper, plain)
    ]
    for step in range(8):
        x, y = (
            torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(2 * step + i))
            for i in range(2)
        )
        set_conditions(hyper, [TASKS[step % 3], TASKS[1], TASKS[0]])
        for model, optimizer in zip((hyper, plain), optimizers, strict=True):
            (model(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        for got, want in pairs:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert min(b.abs().max() for _, b in pairs) > 0.05


@pytest.mark.parametrize("latent, hidden, r", [(16, 6, 3), (128, 64, 8)])
def test_what_is_trained_is_counted_in_closed_form(latent, hidden, r):
    shapes = [(12, 20), (20, 12)]  # up and down, in two blocks each
    heads = (hidden + 2) * r * sum(i + o for i, o in shapes)
    n, half, quarter = latent, latent // 2, latent // 4
    norms = 2 * (half + 2 * quarter) + 2 * n + 2 * n  # of the parts, in res, in out
    trunk = (n * n + n) + (2 * n * n + 2 * n) + (2 * n * n + n) + (n * hidden + hidden)
    places = 2 * quarter + 2 * quarter  # two depths, two types

    def trained(**settings) -> int:
        model = made(r=r, latent=latent, hidden=hidden, **settings)
        return lorica.trainable_parameters(model).trainable

    rest = heads + norms + trunk + places
    assert trained() == rest + 3 * half
    pairs = ("en-fr", "fr-en", "en-de", "de-fr")
    assert trained(condition="pair", conditions=pairs) == rest + 3 * quarter
    known = {"condition": "embedding", "width": 7, "conditions": ()}
    assert trained(**known) == rest + 7 * half + half
    assert trained(condition="text", width=7) == rest + 7 * half + half


# -- rows of several conditions -------------------------------------------------------------


@pytest.fixture
def moved() -> nn.Module:
    return move(made(), size=0.3)


def test_conditions_are_different_adapters(moved):
    outputs = [at(moved, [task]) for task in TASKS]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert (outputs[1] - outputs[2]).abs().max() > 1e-3


def test_mixed_rows_are_the_rows_alone(moved):
    mixed = at(moved, ["turn", "add", "turn"])
    for row, task in enumerate(["turn", "add", "turn"]):
        torch.testing.assert_close(mixed[row], at(moved, [task], X[row : row + 1])[0])


def test_rows_end_to_end_are_the_rows_alone(moved):
    lengths, tasks = [5, 2, 4, 1], ["sort", "add", "sort", "turn"]
    x = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(1))
    set_conditions(moved, tasks, lengths)
    got = moved(x)[0].split(lengths)
    for row, task, rows in zip(x[0].split(lengths), tasks, got, strict=True):
        torch.testing.assert_close(rows, at(moved, [task], row.unsqueeze(0))[0])


def test_both_layouts_give_one_gradient(moved):
    lengths, tasks, grads = [5, 5, 5], ["sort", "add", "sort"], []
    for x, told in ((X, None), (X.reshape(1, 15, 12), lengths)):
        set_conditions(moved, tasks, told)
        moved(x).sin().sum().backward()
        grads.append({n: p.grad for n, p in moved.named_parameters() if p.grad is not None})
        moved.zero_grad()
    assert len(grads[0]) > 20
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key], atol=1e-4, rtol=1e-4)


def test_checkpointing_with_several_conditions_keeps_gradients():
    grads = []
    for checkpointed in (False, True):
        model = lorica.adapt(
            Stack(checkpointed=checkpointed), Hyperlora(r=3, latent=16, hidden=6, conditions=TASKS)
        )
        move(model, size=0.3)
        set_conditions(model, ["turn", "add", "turn"])
        model(X).sin().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key])


@pytest.mark.slow
def test_several_conditions_compile_whole(moved):
    torch._dynamo.reset()
    compiled = torch.compile(moved, backend="aot_eager", fullgraph=True)
    for tasks in (["turn", "add", "turn"], ["add", "sort", "sort"]):
        set_conditions(moved, tasks)
        torch.testing.assert_close(compiled(X), moved(X), atol=1e-5, rtol=1e-5)


def test_the_network_is_float32_under_autocast_and_on_a_bfloat16_base(moved):
    seen = []
    network(moved).register_forward_hook(lambda *args: seen.extend(args[2]))
    with torch.autocast("cpu", torch.bfloat16):
        assert at(moved, TASKS).dtype == Stack()(X).dtype
    half = lorica.adapt(Stack().bfloat16(), Hyperlora(r=3, latent=16, conditions=TASKS))
    network(half).register_forward_hook(lambda *args: seen.extend(args[2]))
    assert at(half, TASKS).dtype == torch.bfloat16
    assert len(seen) == 16
    assert {t.dtype for t in seen} == {torch.float32}


def test_what_is_made_is_made_once_without_gradients(moved):
    calls = []
    network(moved).register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        set_conditions(moved, ["add"])
        first = moved(X)
        assert len(calls) == 4
        assert torch.equal(moved(X), first)
        assert len(calls) == 4, "generation asks for the same matrices at every token"
        network(moved).heads["up_12x20"].bias_b.add_(0.1)
        changed = moved(X)
        assert not torch.allclose(changed, first), "a weight has changed since"
        set_conditions(moved, ["sort"])
        assert not torch.allclose(moved(X), changed)
    with_grad = moved(X)
    assert with_grad.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(moved(X), with_grad)


def test_copies_have_conditions_of_their_own(moved):
    set_conditions(moved, ["add"])
    want = moved(X)
    copied = copy.deepcopy(moved)
    set_conditions(copied, ["sort"])
    assert torch.equal(moved(X), want)
    assert not torch.allclose(copied(X), want)
    with torch.no_grad():  # and its matrices are made from its own weights
        before = copied(X)
        for parameter in network(copied).parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(copied(X), before)
        assert torch.equal(moved(X), want)


def test_dropout_acts_in_training_alone():
    model = move(made(dropout=0.5), size=0.3)
    set_conditions(model, ["add"])
    assert torch.equal(model.eval()(X), model(X))
    assert not torch.equal(model.train()(X), model(X))


# -- what is refused ------------------------------------------------------------------------


def test_no_condition_is_refused_where_some_are_known(moved):
    with pytest.raises(ConfigError, match="none is set") as error:
        moved(X)
    assert "add" in error.value.facts["known"]
    assert error.value.fix
    with lorica.use(moved):
        assert torch.equal(moved(X), Stack()(X)), "the base needs none"


def test_an_unseen_condition_is_refused(moved):
    with pytest.raises(ConfigError, match="'srot'") as error:
        set_conditions(moved, ["add", "srot"])
    assert error.value.facts["closest"].startswith("sort")
    with pytest.raises(ConfigError, match="'add'"):
        set_conditions(made(conditions=()), ["add"])


def test_other_rows_than_the_conditions_are_refused(moved):
    set_conditions(moved, ["add", "sort"])
    with pytest.raises(DataError, match="3 rows, and conditions are set for 2"):
        moved(X)
    with pytest.raises(DataError, match="2 conditions are set for 3 rows"):
        set_conditions(moved, ["add", "sort"], [5, 5, 5])


def test_conditions_do_not_outlive_the_block(moved):
    with pytest.raises(KeyboardInterrupt), with_conditions(moved, ["add"]):
        raise KeyboardInterrupt
    with pytest.raises(ConfigError, match="none is set"):
        moved(X)


def test_a_text_alone_is_one_condition(moved):
    assert torch.equal(at(moved, "add"), at(moved, ["add"]))


def test_one_condition_that_nobody_named():
    model = move(made(conditions=()), size=0.3)
    want = model(X)
    assert torch.equal(at(model, ["default"]), want)
    with pytest.raises(ConfigError):
        at(model, ["add"])
    assert torch.equal(model(X), want)


def test_layers_of_one_head_have_one_rank():
    with pytest.raises(ConfigError, match="one r for all layers") as error:
        lorica.adapt(Stack(), Hyperlora(r=3), rank_pattern={"layers.0.up": 2})
    assert "rank_pattern" in error.value.fix
    model = lorica.adapt(Stack(), Hyperlora(r=4), alpha_pattern={"layers.0.up": 2})
    assert [a.scale for a in attached(model, "default").adapters.values()] == [0.5, 2, 2, 2]


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"r": True}, "r"),
        ({"latent": 10}, "latent"),
        ({"latent": 0}, "latent"),
        ({"hidden": 0}, "hidden"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"penalty": -1}, "penalty"),
        ({"penalty": math.inf}, "penalty"),
        ({"condition": "tasks"}, "condition"),
        ({"conditions": ["a", "a"]}, "conditions"),
        ({"conditions": ["a", ""]}, "conditions"),
        ({"width": 0}, "width"),
        ({"condition": "embedding", "conditions": ["[1.0]"]}, "conditions"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, word):
    with pytest.raises(ConfigError, match=rf"hyperlora\.{word} is") as error:
        Hyperlora(**settings)
    assert error.value.fix


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"condition": "pair"}, "knows no condition that is a pair"),
        ({"condition": "text", "width": 4}, "knows no condition that is a text"),
        ({"condition": "text", "conditions": ["be kind"]}, "hidden states is not known"),
        ({"condition": "embedding"}, "width of an embedding is not known"),
        ({"condition": "pair", "conditions": ["en"]}, "'en' is no pair"),
        ({"condition": "pair", "conditions": ["en-fr-de"]}, "'en-fr-de' is no pair"),
    ],
    ids=str,
)
def test_what_is_missing_is_said_when_it_is_attached(settings, words):
    model = Stack()
    before = bits(model)
    with pytest.raises(ConfigError, match=words) as error:
        lorica.adapt(model, Hyperlora(**settings))
    assert error.value.fix
    assert same_bits(before, model.state_dict())


# -- what training rows make known ----------------------------------------------------------


def test_the_rows_conditions_become_the_known():
    assert Hyperlora().for_conditions(["b", "a", "b"]).conditions == ("a", "b")
    assert Hyperlora(conditions=("b", "a")).for_conditions(["a", "b"]).conditions == ("b", "a")
    found = Hyperlora(condition="embedding").for_conditions(["[1.0, 2.0]", "[0.5, 3]"])
    assert (found.conditions, found.width) == ((), 2)


@pytest.mark.parametrize(
    "settings, rows, words",
    [
        ({}, None, "the training rows have none"),
        ({}, [], "the training rows have none"),
        ({"conditions": ["a"]}, ["a", "b"], "does not know the condition 'b'"),
        ({"conditions": ["a", "b"]}, ["a"], "no training row has the condition 'b'"),
        ({"condition": "pair"}, ["en-fr", "en"], "'en' is no pair"),
        ({"condition": "pair", "conditions": ["en-fr", "en-de"]}, ["en-fr"], "'de'"),
        ({"condition": "embedding"}, ["[1.0]", "[1.0, 2.0]"], "an embedding has 2 numbers"),
        ({"condition": "embedding"}, ["word"], "'word' is no embedding"),
        ({"condition": "embedding"}, ["[NaN]"], "no embedding"),
        ({"condition": "embedding"}, ["[]"], "no embedding"),
        ({"condition": "embedding"}, ["[true]"], "no embedding"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit(settings, rows, words):
    with pytest.raises(ConfigError, match=words) as error:
        Hyperlora(**settings).for_conditions(rows)
    assert error.value.fix


def test_a_new_pair_of_known_languages_can_be_asked_for_when_it_is_named():
    every = ("de-en", "en-de", "en-fr", "fr-de", "fr-en")
    method = Hyperlora(condition="pair", conditions=every).for_conditions(
        ["en-fr", "fr-de", "de-en"]
    )
    assert method.conditions == every
    model = move(lorica.adapt(Stack(), method), size=0.3)
    assert (at(model, ["en-de"]) - at(model, ["de-en"])).abs().max() > 1e-3, "order counts"
    with pytest.raises(ConfigError, match="'de-fr'"):
        at(model, ["de-fr"])


def test_methods_without_a_use_for_conditions_say_so():
    model = lorica.adapt(Stack(), Lora())
    (line,) = unused_conditions(model, ["b", "a"])
    assert "not used: a, b" in line
    assert unused_conditions(model, None) == []
    assert unused_conditions(made(), ["add"]) == []
    assert Lora().for_conditions(["a"], hidden_size_of(model)) == Lora()


def test_swapped_conditions_are_all_others():
    found = swapped_conditions(["b", "a", "c", "a"])
    assert found == ["c", "b", "a", "b"]


# -- embeddings and texts -------------------------------------------------------------------


def test_embeddings_need_not_be_known():
    model = move(made(condition="embedding", width=3, conditions=()), size=0.3)
    one, two = "[0.5, -1.0, 2]", "[1.5, 0.0, 0.25]"
    mixed = at(model, [one, two, one])
    torch.testing.assert_close(mixed[1], at(model, [two], X[1:2])[0])
    assert (at(model, [one]) - at(model, [two])).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="has 2 numbers; this adapter reads 3"):
        at(model, ["[1.0, 2.0]"])
    with pytest.raises(ConfigError, match="none is set"):
        model(X)


class Words:
    """A tokenizer of one id a letter."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(3 + ord(letter) % 50 for letter in text)]}


def reader(**settings) -> nn.Module:
    """A real Llama whose adapter is made from texts."""
    base = llama()
    method = Hyperlora(r=2, latent=16, hidden=4, condition="text", **settings)
    return lorica.adapt(base, method.for_conditions(["be kind", "be brief"], hidden_size_of(base)))


def test_texts_are_read_by_the_base():
    model = reader()
    before = bits(model)
    with pytest.raises(ConfigError, match="the base has not encoded the condition 'be kind'"):
        set_conditions(model, ["be kind"])
    move(model.train(), size=0.2)
    assert encode_conditions(model, Words()) == []
    assert model.training, "the mode is as it was"
    state = adapter_state(model)
    (table,) = [t for key, t in state.items() if key.endswith(".table")]
    base = llama()
    for row, text in zip(table, ("be brief", "be kind"), strict=True):
        ids = torch.tensor([Words()(text)["input_ids"]])
        want = base(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
        torch.testing.assert_close(row, want)
    set_conditions(model.eval(), ["be kind", "be brief"])
    assert not torch.allclose(model(IDS).logits[0], model(IDS.flip(0)).logits[1])
    assert same_bits(before, bits(model))


def test_a_new_text_is_taken_by_its_words_and_named(tmp_path):
    model = move(reader(), size=0.2)
    encode_conditions(model, Words())
    with pytest.raises(ConfigError, match="has not encoded the condition 'be bold'"):
        set_conditions(model, ["be bold"])
    (line,) = encode_conditions(model, Words(), ["be bold", "be kind"])
    assert "not trained on" in line and "be bold" in line and "be kind" not in line
    assert encode_conditions(model, Words(), ["be bold"]) == []
    outputs = [at(model, [text], IDS).logits for text in ("be bold", "be kind")]
    assert not torch.allclose(*outputs)
    with pytest.raises(DataError, match="empty"):
        encode_conditions(model, Words(), [" "])
    lorica.save(model, tmp_path / "adapter")
    fresh = llama()
    lorica.load(fresh, tmp_path / "adapter")
    assert torch.equal(at(fresh, ["be kind"], IDS).logits, outputs[1]), "known texts are kept"
    with pytest.raises(ConfigError, match="be bold"):
        set_conditions(fresh, ["be bold"])
    encode_conditions(fresh, Words(), ["be bold"])
    torch.testing.assert_close(at(fresh, ["be bold"], IDS).logits, outputs[0])


# -- one condition as a LoRA, files ---------------------------------------------------------


def test_a_condition_as_factors_equals_the_forward(moved):
    for task in TASKS:
        with with_conditions(moved, [task]):
            want = moved(X)
            pairs = {n: a.factors() for n, a in attached(moved, "default").adapters.items()}
        plain = lorica.adapt(Stack(), Lora(r=3, alpha=3))
        with torch.no_grad():
            for name, adapter in attached(plain, "default").adapters.items():
                adapter.a.copy_(pairs[name][0])
                adapter.b.copy_(pairs[name][1])
        torch.testing.assert_close(plain(X), want)
    set_conditions(moved, TASKS)
    assert next(iter(attached(moved, "default").adapters.values())).factors() is None


@pytest.mark.parametrize("task", TASKS)
def test_merging_one_condition(moved, task):
    want = at(moved, [task])
    set_conditions(moved, [task])
    lorica.merge(moved)
    torch.testing.assert_close(moved(X), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("conditions", [None, TASKS], ids=["none", "several"])
def test_merging_without_one_condition_is_refused(moved, conditions):
    set_conditions(moved, conditions)
    before = bits(moved)
    with pytest.raises(MergeError, match="another weight for each condition") as error:
        lorica.merge(moved)
    assert "--condition" in error.value.fix
    assert same_bits(before, bits(moved))


def test_a_loaded_adapter_knows_its_conditions(moved, tmp_path):
    want = at(moved, ["turn", "add", "sort"])
    lorica.save(moved, tmp_path / "adapter")
    fresh = Stack()
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(at(fresh, ["turn", "add", "sort"]), want)
    with pytest.raises(ConfigError, match="none is set"):
        fresh(X)
    files = adapter_state(moved)
    assert len(files) == len({id(t) for t in files.values()})
    assert {key.rpartition(".network.")[0] for key in files} == {"layers.0.up"}, "stored once"


# -- training -------------------------------------------------------------------------------

TURNS = [torch.randn(12, 12, generator=torch.Generator().manual_seed(i)) / 3 for i in range(3)]


def batch(step: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Rows whose target is another map of x for each task."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(6, 4, 12, generator=generator)
    which = [random.Random(step * 10 + i).randrange(3) for i in range(6)]
    y = torch.stack([row @ TURNS[i] for row, i in zip(x, which, strict=True)])
    return x, [TASKS[i] for i in which], y


class Run:
    """A few steps of training on `batch`, which can be stopped and taken up."""

    def __init__(self, total: int, **settings):
        self.model = made(r=6, hidden=16, latent=32, **settings).train()
        self.tensors = {k: t for k, t in adapter_state(self.model).items() if t.requires_grad}
        self.driver = Driver(self.model, total=total)
        self.optimizer = torch.optim.AdamW(self.tensors.values(), lr=5e-3)

    def to(self, last: int) -> "Run":
        while self.driver.t < last:
            x, tasks, y = batch(self.driver.t)
            set_conditions(self.model, tasks)
            loss = (self.model(x) - y).square().mean() + self.driver.penalty()
            loss.backward()
            self.driver.before_step()
            self.optimizer.step()
            self.driver.after_step()
            self.optimizer.zero_grad()
        return self

    def loss(self, swap: bool = False) -> float:
        x, tasks, y = batch(-1)
        with (
            torch.no_grad(),
            with_conditions(self.model, swapped_conditions(tasks) if swap else tasks),
        ):
            return (self.model(x) - y).square().mean().item()


def test_the_condition_is_used():
    run = Run(120)
    start = run.loss()
    run.to(120)
    assert run.loss() < 0.6 * start
    assert run.loss(swap=True) > 2 * run.loss()


def test_a_resumed_run_is_the_same_run():
    whole, first = Run(8).to(8), Run(8).to(3)
    second = Run(8)
    load_adapter_state(second.model, adapter_state(first.model))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.driver.load_state({k: t.clone() for k, t in first.driver.state().items()})
    second.to(8)
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, second.tensors[key]), key


def test_the_penalty_by_hand():
    """The mean over the layers of a type and the tasks, the sum over the types: `up` and `down`."""
    model = move(made(penalty=0.25), size=0.2)
    driver = Driver(model, total=5)
    by_type: dict[str, list[torch.Tensor]] = {"up": [], "down": []}
    for task in TASKS:
        with with_conditions(model, [task]):
            for site, adapter in attached(model, "default").adapters.items():
                a, b = adapter.factors()
                size = a.square().mean() + (b / adapter.scale).square().mean()
                by_type[site.rpartition(".")[2]].append(size)
    want = 0.25 * sum(torch.stack(sizes).mean() for sizes in by_type.values())
    torch.testing.assert_close(driver.penalty(), want)
    loss = driver.penalty()
    loss.backward()
    assert all(p.grad is not None for p in network(model).parameters())


def test_the_penalty_does_not_depend_on_the_rows_at_hand(moved):
    driver = Driver(moved, total=5)
    want = driver.penalty()
    set_conditions(moved, ["add", "add", "sort"])
    assert torch.equal(driver.penalty(), want)
    assert Driver(made(penalty=0.0), total=5).penalty() == 0.0


def test_the_penalty_goes_through_many_conditions_in_turn():
    many = tuple(f"task {i:02}" for i in range(2 * MAX_CONDITIONS + 3))
    model = made(conditions=many, penalty=1.0)
    seen: list[int] = []
    network(model).enc.vectors.register_forward_hook(
        lambda _, args, out: seen.extend(args[0].flatten().tolist())
    )
    driver = Driver(model, total=10)
    for _ in range(3):
        driver.penalty()
        driver.before_step()
        driver.after_step()
    heads = 2
    assert len(seen) == 3 * MAX_CONDITIONS * heads
    assert set(seen) == set(range(len(many)))


def test_embeddings_are_held_small_where_they_are_set():
    model = made(condition="embedding", width=2, conditions=(), penalty=1.0)
    driver = Driver(model, total=5)
    assert driver.penalty() == 0.0
    set_conditions(model, ["[1.0, 2.0]"])
    assert driver.penalty() > 0


def test_a_real_model_generates_under_several_conditions():
    """With the key-value cache, each row's text is that of its condition alone."""
    model = move(lorica.adapt(llama(), Hyperlora(r=4, conditions=TASKS)), size=0.1)
    options = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(IDS),
    }
    alone = []
    for row, task in enumerate(("turn", "add")):
        with with_conditions(model, [task]):
            one = {**options, "attention_mask": torch.ones_like(IDS[:1])}
            alone.append(model.generate(IDS[row : row + 1], **one)[0].tolist())
    with with_conditions(model, ["turn", "add"]):
        assert model.generate(IDS, **options).tolist() == alone
    with with_conditions(model, ["add", "turn"]):
        assert model.generate(IDS, **options).tolist() != alone
