"""An adapter that makes the model's numbers overflow fails its own answers, and no others."""

import asyncio
import threading
from dataclasses import replace

import torch

import lorica
from lorica.base.load import load
from lorica.core.state import adapter_state
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.exchange import End, Job
from tests import small_base as small
from tests.serve.shelf import TOKENIZER, stock
from tests.serve.traffic import Changes, Traffic, asks, mistakes


def write_overflowing(folder, name):
    """Finite numbers, whose products are not."""
    model = lorica.adapt(small.model(), lorica.method(name))
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor.fill_(1e30)
    return lorica.save(model, folder, tokenizer=TOKENIZER)


def test_it_fails_alone(small_base, tmp_path):
    plan = {"lora": 1, "dora": 1, "ia3": 1, "prefix_tuning": 1}
    shelf = stock(tmp_path, plan, twice=0, prompts=(4, 30, 280), tokens=3)
    engine = engine_of(load(str(small_base)), EngineSettings(max_length=448, slots=6))
    changes, traffic = Changes(engine), Traffic(engine, shelf, clients=1, in_flight=8)
    for alias, folders in shelf.folders.items():
        changes.load(alias, folders[0])
    for name in ("lora", "ia3", "prefix_tuning"):
        engine.store.load(f"broken-{name}", write_overflowing(tmp_path / f"broken-{name}", name))
    engine.start()
    stop, ends = threading.Event(), []

    async def ask_broken():
        sampling = shelf.alone[("", None), 0][0].sampling
        number = 0
        while not stop.is_set():
            name = ("lora", "ia3", "prefix_tuning")[number % 3]
            prompt = shelf.prompts[number // 3 % 3]
            job = Job(tenant="t", model=f"broken-{name}", prompt=prompt, sampling=sampling)
            answers = [engine.submit(replace(job, tenant=f"t{i}")) for i in range(2)]
            for answer in answers:
                ends.extend([(name, e) async for e in answer if isinstance(e, End)])
            number += 1

    broken = threading.Thread(target=lambda: asyncio.run(ask_broken()))
    broken.start()
    try:
        outcomes = traffic.run(asks(shelf, 40, seed=0))
    finally:
        stop.set()
        broken.join()
        is_ready = engine.is_ready
        engine.close()
    assert mistakes(shelf, outcomes, changes.generations) == []
    errors = [end.error for name, end in ends if name == "lora"]  # norms may hide what others do
    assert len(errors) > 2 and all("not finite" in str(error) for error in errors)
    assert is_ready
