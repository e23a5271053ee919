"""How fast a batch decodes whose rows have an adapter each, over the same model with one merged.

    python -m benchmarks.serve.decode [--shape S] [--dtype float32] [--case mixed] [--rounds 7]

All sides of a case decode in one process by turns, through the same decoder; the time is that of
the process, and a side's is its best round. Adapters have r=16 on all linear layers. Shapes: S is
8 layers x 512, M is 16 x 1024, vocabulary 32,000, as a Llama.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lorica
from lorica.core.attach import activate
from lorica.core.bank import attached
from lorica.core.row_form import RowForm
from lorica.generation.decoder import Decoder
from lorica.generation.row import Request
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops
from lorica.serve.bank import ServingBank
from lorica.serve.prepare import Prepared

SHAPES = {"S": (8, 512), "M": (16, 1024), "T": (2, 64)}
STEPS, PROMPT = 6, 8


@dataclass(frozen=True)
class Case:
    """rows: of the batch. adapters: resident, of which row i has number i modulo them."""

    rows: int
    adapters: int
    method: str = "lora"
    peers: bool = False

    @property
    def keys(self) -> list[str]:
        return [f"a{i % self.adapters}" for i in range(self.rows)]


CASES = {
    "one": [Case(1, 1), Case(8, 1), Case(32, 1)],
    "mixed": [Case(8, 8, peers=True), Case(32, 8, peers=True)],
    "dora": [Case(8, 8, "dora"), Case(32, 8, "dora")],
    "many": [Case(32, 64)],
}


def base(shape: str, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 11 // 4 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    return model.to(device, dtype).eval().requires_grad_(False)


class Side:
    """A model that decodes a batch, again and again."""

    def __init__(self, name: str, model: nn.Module, rounds: int, acting: Callable[..., Any]):
        self.name, self.model, self.acting, self.rounds = name, model, acting, rounds
        self.best = float("inf")

    def start(self, case: Case) -> None:
        length = PROMPT + (self.rounds + 1) * STEPS + 2
        self.decoder = Decoder(
            self.model, slots=case.rows, max_length=length, acting=self.acting, chunk=10**6
        )
        sampling = Sampling(max_new_tokens=length - PROMPT)
        self.decoder.admit(
            [
                Request(
                    prompt=[7 + i] * PROMPT, sampling=sampling, stops=Stops((), ()), adapter=key
                )
                for i, key in enumerate(case.keys)
            ]
        )
        self.decoder.step()
        self.run()
        self.best = float("inf")

    def run(self) -> None:
        begin = time.process_time()
        for _ in range(STEPS):
            self.decoder.step()
        self.best = min(self.best, time.process_time() - begin)


def sides(
    case: Case, shape: str, dtype: torch.dtype, rounds: int, device: str = "cpu"
) -> list[Side]:
    """The merged model first. All have weights of their own. Peers are measured on a CPU only."""
    merged = base(shape, dtype, device)
    built = [Side("merged", merged, rounds, lambda keys: nullcontext())]
    served, forms = base(shape, dtype, device), dict[str, Prepared]()
    bank = ServingBank(served)
    for i in range(case.adapters):
        forms[f"a{i}"] = prepared(copy_of(served), case.method, i)
        bank.add(f"a{i}", forms[f"a{i}"])
    built.append(Side("bank", served, rounds, bank.acting))
    if case.peers and device == "cpu":
        built += [_mixed(case, shape, dtype, rounds), _peft(case, shape, dtype, rounds)]
    return built


def copy_of(model: nn.Module) -> nn.Module:
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)  # type: ignore[arg-type]


@torch.no_grad()
def prepared(model: nn.Module, method: str, seed: int) -> Prepared:
    """A random adapter of `method`. model: a copy of the base, which gets it."""
    lorica.adapt(model, lorica.method(method, r=16), name="own", seed=seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    own = attached(model, "own")
    forms: dict[str, RowForm] = {}
    for name, site in own.sites.items():
        form = own.every[name].row_form(site.module.forward, site.like.dtype)
        assert form is not None
        forms[name] = form.copied_to(site.like)
    return Prepared(own.spec, forms)


def _mixed(case: Case, shape: str, dtype: torch.dtype, rounds: int) -> Side:
    model = base(shape, dtype)
    for i in range(case.adapters):
        lorica.adapt(model, lorica.method(case.method, r=16), name=f"a{i}", seed=i)
    activate(model)

    def acting(keys: Sequence[Any]) -> AbstractContextManager[Any]:
        return lorica.mixed(model, keys)

    return Side("lorica.mixed", model, rounds, acting)


def _peft(case: Case, shape: str, dtype: torch.dtype, rounds: int) -> Side:
    import peft

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=16, target_modules=names)
    model: Any = peft.get_peft_model(base(shape, dtype), config, adapter_name="a0")
    for i in range(1, case.adapters):
        model.add_adapter(f"a{i}", config)
    model.eval()

    def acting(keys: Sequence[Any]) -> AbstractContextManager[Any]:
        return model._enable_peft_forward_hooks(adapter_names=list(keys))

    return Side("PEFT adapter_names", model.base_model.model, rounds, acting)


def measure(case: Case, shape: str, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Speed over that of the merged model, by side."""
    built = sides(case, shape, dtype, rounds)
    for side in built:
        side.start(case)
    for _ in range(rounds):
        for side in built:
            side.run()
    return {side.name: built[0].best / side.best for side in built}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--case", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"shape {options.shape}, {options.dtype}; decode speed over the merged model's")
    for name in options.case:
        for case in CASES[name]:
            speeds = measure(case, options.shape, getattr(torch, options.dtype), options.rounds)
            what = f"{name}: b={case.rows}, {case.adapters} x {case.method}"
            figures = ", ".join(f"{side} {ratio:.2f}" for side, ratio in speeds.items())
            print(f"{what:32} {figures}", flush=True)


if __name__ == "__main__":
    main()
