"""DLoRA's split: two processes over TCP give what one gives, and the bytes between are counted."""

import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

import lorica
from lorica.base.load import load
from lorica.core.bank import attached
from lorica.errors import ConfigError
from lorica.formats.commit import read_tensors
from lorica.training.config import read
from lorica.training.run import read_events
from lorica.training.split.device import connect
from lorica.training.split.kill_and_revive import KillAndRevive
from tests.laws.bases import IDS, Stack, move

CLOUD = """
import sys
from typing import Any
import lorica.training.split.cloud as cloud
from lorica.base.load import load
def double(*args, **options):
    base = load(*args, **options)
    base.model.double()
    return base
cloud.load = double
cloud.serve(cloud.TrainConfig(base=sys.argv[1], data="none.jsonl", output="x"), sys.argv[2])
"""


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


@pytest.fixture
def split(small_base):
    """A device with adapters in float64, joined to a cloud in another process."""
    peer = free_port()
    cloud = subprocess.Popen([sys.executable, "-c", CLOUD, str(small_base), peer])
    base, device = connect(str(small_base), torch.float64, peer)
    lorica.adapt(base.model, lorica.Lora(r=4), seed=3)
    move(base.model.double())
    device.use_adapters()
    yield base.model, device
    device.close()
    assert cloud.wait(60) == 0


def gradients(model, **options) -> dict[str, torch.Tensor]:
    logits = model(IDS, use_cache=False, **options).logits
    logits.sin().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(split, small_base):
    model, device = split
    whole: Any = load(str(small_base)).model.double()
    lorica.adapt(whole, lorica.Lora(r=4), seed=3)
    whole = move(whole.double())
    want, got = gradients(whole), gradients(model)
    assert want.keys() == got.keys()
    for key in want:
        assert got[key] is not None, key
        torch.testing.assert_close(got[key], want[key], rtol=1e-10, atol=1e-12)

    # Two directions of x (I) and of the update (O), forward and backward, 8 bytes a number.
    tokens = IDS.numel()
    ports = {name: model.get_submodule(name).adapters for name in device.adapters}
    sites = {name: port.in_features + port.out_features for name, port in ports.items()}
    for site, width in sites.items():
        assert device.sent[site] == 2 * tokens * width * 8
    del device.sent["ends"]
    full = device.take_sent_bytes()

    keep = [s for s in sites if s.endswith("q_proj")]
    device.active.intersection_update(keep)
    model.zero_grad()
    partial = gradients(model)
    assert {k.partition(".adapters")[0] for k, g in partial.items() if g is not None} == set(keep)
    del device.sent["ends"]
    share = sum(sites[s] for s in keep) / sum(sites.values())
    assert device.take_sent_bytes() == round(full * share)


@pytest.mark.slow
def test_the_device_holds_embedding_and_head_alone(split):
    model, _ = split
    held = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for n, p in model.named_parameters()
        if ".adapters." not in n
    }
    embedding = model.get_input_embeddings().weight
    assert sum(held.values()) < embedding.nbytes + 8 * len(held) + 1


def resting_after(schedule, model, steps):
    """The active sets after each choice of `steps` steps with made-up gradients."""
    seen = []
    for t in range(1, steps + 1):
        for i, adapter in enumerate(schedule.adapters.values()):
            for p in adapter.parameters():
                p.grad = torch.full_like(p, float(i + 1)) if p.requires_grad else None
        schedule.before_step(t)
        schedule.after_step(t)
        seen.append(frozenset(schedule.active))
    return seen


def killing(share=0.5, interval=2):
    model = move(lorica.adapt(Stack(), lorica.Lora(r=2)))
    adapters = attached(model, "default").adapters
    return model, KillAndRevive(adapters, set(adapters), share=share, interval=interval, seed=0)


def test_killed_adapters_do_not_change():
    model, schedule = killing()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    seen = resting_after(schedule, model, 2)
    assert len(seen[0]) == 4
    assert len(seen[1]) == 2
    for site, adapter in schedule.adapters.items():
        for p in adapter.parameters():
            assert p.requires_grad == (site in seen[1])
            assert (p.grad is None) == (site not in seen[1])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_resumed_schedule_goes_on_as_it_was():
    model, schedule = killing()
    resting_after(schedule, model, 3)
    state = {k: t.clone() for k, t in schedule.state().items()}
    want = resting_after(schedule, model, 4)
    model, again = killing()
    again.load_state(state)
    assert resting_after(again, model, 4) == want


def test_an_active_share_keeps_at_least_one_layer():
    _, schedule = killing(share=0.125)
    assert schedule.count == 1  # of four: at least one
    with pytest.raises(ConfigError, match="active_share"):
        killing(share=0.0)


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"split": "device"}, "peer"),
        ({"peer": "a:1"}, "split"),
        ({"split": "cloud", "peer": "a:1", "method": "dora"}, "split"),
        ({"active_share": "0.5"}, "active_share"),
        ({"split": "cloud", "peer": "a:1", "target_parameters": "experts"}, "no experts"),
    ],
)
def test_conflicting_settings_are_refused(flags, word):
    with pytest.raises(ConfigError, match=word):
        read(None, {"data": "rows.jsonl", **flags})


@pytest.mark.slow
def test_a_run_from_the_command_line(small_base, tmp_path):
    peer = free_port()
    text = tmp_path / "text.txt"
    text.write_text("Tom had many big red balls and he liked milk.\n" * 400)
    words = [
        sys.executable,
        "-m",
        "lorica",
        "train",
        "--base",
        str(small_base),
        "--data",
        str(text),
    ]
    settings = {
        "data.max_length": 32,
        "data.validation": 0.002,
        "max_steps": 3,
        "eval_steps": 3,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "target_modules": "q_proj",
    }
    words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    ends = {"split": ["--split", "device", "--peer", peer], "whole": []}
    cloud = subprocess.Popen([*words, "--split", "cloud", "--peer", peer])
    for name, more in ends.items():
        subprocess.run([*words, *more, "--output", str(tmp_path / name)], check=True)
    assert cloud.wait(60) == 0
    got, want = (
        read_tensors(tmp_path / name / "adapter/adapter_model.safetensors") for name in ends
    )
    for key in want:
        torch.testing.assert_close(got[key], want[key], atol=1e-6, rtol=1e-4)
    sent = [e["sent_bytes"] for e in read_events(tmp_path / "split") if e["event"] == "step"]
    assert len(sent) == 3
    assert min(sent) > 0
    fresh = load(str(small_base)).model
    assert lorica.load(fresh, tmp_path / "split/adapter") == []
