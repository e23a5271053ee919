"""The bases that every law is tried on, and adapters that have moved away from their start.

    stack      plain nn.Linear blocks, float32          packed     the same, int8 rows and scales
    bf16       the same, bfloat16                       gpt2       Conv1D, tied head (random)
    llama      a Llama (random), all linears but head   embedding  its input embedding, head tied
    head       its output head, tied to the embedding
    nf4        the stack in 4 bits, double quantised    int8       the stack in 8 bits
    llama-nf4  the Llama in 4 bits, all linears but the head
    mixtral    fused experts and attention of a Mixtral   qwen3_moe   fused experts alone

A method is tried on every base that has sites for it.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lorica
from lorica.base.quantise import Kind, quantise
from lorica.core.adapter import Method
from lorica.core.bank import bank_of
from lorica.core.draws import drawing
from lorica.core.site import sites_of
from lorica.errors import TargetError
from tests.base.architectures import tiny
from tests.training.rows import tiny_base

SHARED = Path(__file__).parents[3] / "shared"
STORIES = SHARED / "data/models/stories260K"
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(7))
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(8))


class Packed(nn.Module):
    """int8 rows with one scale each: a stand-in for any quantised linear layer."""

    scale: Tensor
    codes: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("codes", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class Stack(nn.Module):
    """Two residual blocks of two linear layers, one of the four with a bias."""

    def __init__(self, packed: bool = False, checkpointed: bool = False):
        super().__init__()
        self.checkpointed = checkpointed
        with drawing(0):
            self.layers = nn.ModuleList(
                nn.ModuleDict(
                    {"up": nn.Linear(12, 20, bias=i == 0), "down": nn.Linear(20, 12, bias=False)}
                )
                for i in range(2)
            )
        if packed:
            for layer in self.layers:
                for key in list(layer):  # type: ignore[call-overload]
                    layer[key] = Packed(layer[key])  # type: ignore[index]

    def block(self, layer: nn.ModuleDict, x: Tensor) -> Tensor:
        return x + layer["down"](F.silu(layer["up"](x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(next(self.buffers() if self.packed else self.parameters()).dtype)
        for layer in self.layers:
            if self.checkpointed:
                x = checkpoint(self.block, layer, x, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = self.block(layer, x)  # type: ignore[arg-type]
        return x

    @property
    def packed(self) -> bool:
        return isinstance(self.layers[0]["up"], Packed)  # type: ignore[index]


@cache
def _small_llama() -> nn.Module:
    """A random Llama of the shape of stories260K: grouped queries, and a head that is tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with drawing(0):
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():  # its own initialization hardly tells tokens apart
            nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    return model


@cache
def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    with drawing(0):
        config = GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        model = GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():  # its own start leaves every bias at zero
            nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
    return model


@cache
def _quantised(kind: Kind) -> nn.Module:
    model = Stack()
    for layer in model.layers:
        for key in list(layer):  # type: ignore[call-overload]
            layer[key] = quantise(layer[key], kind)  # type: ignore[index]
    return model


_FOLDER = TemporaryDirectory()  # a quantised base reads its float weights from its files


@cache
def _llama_nf4() -> nn.Module:
    from lorica.base.load import load

    return load(str(tiny_base(Path(_FOLDER.name), hidden_size=64)), quantisation="nf4").model


def quantised(kind: Kind) -> nn.Module:
    return copy.deepcopy(_quantised(kind))


def llama_nf4() -> nn.Module:
    return copy.deepcopy(_llama_nf4())


def small_llama() -> nn.Module:
    return copy.deepcopy(_small_llama())


@cache
def _stories() -> nn.Module:
    from lorica.base.load import load

    return load(str(STORIES)).model


def stories() -> nn.Module:
    """stories260K, for results that others recorded on it."""
    if not STORIES.is_dir() or os.environ.get("LORICA_NO_SHARED"):
        pytest.skip(f"{STORIES} is not here: results were recorded on it")
    return copy.deepcopy(_stories())


def gpt2() -> nn.Module:
    return copy.deepcopy(_gpt2())


@dataclass(frozen=True)
class Case:
    """A base, where its adapters go, and how exact its numbers are.

    needs: the kind of site that the targets are.
    """

    name: str
    make: Callable[[], nn.Module]
    targets: dict[str, object] = field(default_factory=dict)
    needs: str = "linear"
    exact: float = 2e-5
    dense: bool = True
    floats: bool = True
    """Takes float vectors, not token ids."""

    def run(self, model: nn.Module) -> Tensor:
        y = model(X) if self.floats else model(IDS).logits
        return y.float() if self.exact > 1e-3 else y

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("stack", Stack),
    Case("bf16", lambda: Stack().bfloat16(), exact=0.06),
    Case("packed", lambda: Stack(packed=True), dense=False),
    Case("gpt2", gpt2, floats=False),
    Case("llama", small_llama, floats=False, exact=1e-4),
    Case(
        "embedding",
        small_llama,
        {"target_modules": ["embed_tokens", "q_proj"]},
        "embedding",
        floats=False,
        exact=1e-4,
    ),
    Case("head", small_llama, {"target_modules": ["lm_head", "v_proj"]}, floats=False, exact=1e-4),
    Case("nf4", lambda: quantised("nf4"), dense=False),
    # Exact as well: our 8-bit layers round weights alone, and no activations as LLM.int8() does.
    Case("int8", lambda: quantised("int8"), dense=False),
    Case("llama-nf4", llama_nf4, floats=False, exact=1e-4, dense=False),
    Case(
        "mixtral",
        lambda: tiny("mixtral"),
        {"target_modules": ["q_proj"], "target_parameters": "experts"},
        "expert",
        floats=False,
        exact=1e-4,
    ),
    Case(
        "qwen3_moe",
        lambda: tiny("qwen3_moe"),
        {"target_modules": [], "target_parameters": "experts"},
        "expert",
        floats=False,
        exact=1e-4,
    ),
]


def method(name: str, **settings: object) -> Method:
    """Method `name`, small."""
    kind = Method.named(name)
    small = {"r": 4} if "r" in kind.__dataclass_fields__ else {}
    return kind(**{**small, **settings})


def named(case_name: str) -> Case:
    return next(case for case in CASES if case.name == case_name)


@cache
def unadapted(case_name: str) -> nn.Module:
    return named(case_name).make()


@cache
def fits(name: str, case_name: str) -> bool:
    """Method `name` can act on the sites of the case."""
    case = named(case_name)
    kind = Method.named(name)
    if not case.dense and not kind.on_quantised:
        return False
    if case.targets:
        return case.needs in kind.kinds
    try:
        return bool(method(name).choose(sites_of(unadapted(case_name), kind.kinds)))
    except TargetError:
        return False


def adapted(name: str, case: Case, **settings: object) -> nn.Module:
    """A fresh base of `case` with a fresh adapter."""
    return lorica.adapt(case.make(), method(name, **settings), **case.targets)


QUICK = ("dora", "lora", "prefix_tuning")
"""Methods that stand for the others where a law takes seconds; all are in the slow suite."""
SIZES = {
    "adalora": 0.2,
    "aflora": 0.3,
    "blora": 0.2,
    "bottleneck": 0.5,
    "dora_dynamic": 0.1,
    "ia3": 0.3,
    "llama_adapter": 0.5,
    "vera": 0.3,
}
"""How far tensors are moved where an update is a product of several that start small."""


def move(model: nn.Module, seed: int = 1, size: float = 0.05) -> nn.Module:
    """Move every trainable tensor away from its start. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    bank = bank_of(model)
    bank.driven |= bank.specs.keys()  # as after a run: what is saved was trained by schedule
    return model


def trained(name: str, case: Case, seed: int = 1, **settings: object) -> nn.Module:
    """A fresh base of `case` with an adapter that has moved."""
    return move(adapted(name, case, **settings), seed, SIZES.get(name, 0.05))


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor of the base, as it is now."""
    return {
        key: tensor.detach().clone()
        for key, tensor in model.state_dict().items()
        if ".adapters." not in f".{key}"
    }


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


SELDOM = {"embedding", "gpt2", "head", "int8", "llama-nf4", "packed"}
"""Cases that are to most methods what another case is: in the slow suite."""


def marks(name: str, case: Case) -> list:
    return [pytest.mark.slow] if case.name in SELDOM and name not in QUICK else []


def pairs() -> list:
    """Every (method, case) that fits, for parametrize("name, case", pairs())."""
    return [
        pytest.param(name, case, id=f"{name}-{case}", marks=marks(name, case))
        for name in Method.names()
        for case in CASES
        if fits(name, case.name)
    ]


def compiled(names: list[str] | None = None, quick: tuple[str, ...] = QUICK) -> list:
    """The methods, those that compile like another one marked slow: compiling takes seconds."""
    every = names or Method.names()
    return [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow], id=n) for n in every]


def on_stack() -> list[str]:
    """The methods that act on plain linear layers."""
    return [name for name in Method.names() if fits(name, "stack")]
