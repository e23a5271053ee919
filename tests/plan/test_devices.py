"""The devices that a run may be planned for."""

import pytest

from lorica.errors import ConfigError
from lorica.plan import devices
from lorica.plan.devices import GIB, Device, device_named


def test_a_card_has_its_memory_speed_and_source():
    card = device_named("A100-40")
    assert (card.name, card.kind) == ("a100-40", "cuda")
    assert 39 * GIB < card.memory_bytes < 40 * GIB
    assert card.flops == {"float32": 19.5e12, "bfloat16": 312e12}
    assert card.bandwidth == 1555e9


@pytest.mark.parametrize("card", devices.devices().values(), ids=lambda card: card.name)
def test_every_card_is_plausible_and_has_a_dated_source(card: Device):
    assert 8 * GIB < card.memory_bytes < 512 * GIB
    assert card.bandwidth and 1e11 < card.bandwidth < 2e13
    assert 5e12 < card.flops["float32"] <= card.flops.get("bfloat16", card.flops["float32"]) < 1e16
    assert any(f"20{year}" in card.source for year in range(15, 27))


@pytest.mark.parametrize(
    ("name", "size"),
    [("24GiB", 24 * GIB), ("24 gb", 24 * 10**9), ("1.5G", 3 * GIB // 2), ("512MiB", GIB // 2)],
)
def test_a_size_is_a_card_of_which_only_the_memory_is_known(name: str, size: int):
    card = device_named(name)
    assert (card.memory_bytes, card.kind, card.flops, card.bandwidth) == (size, "cuda", {}, None)


@pytest.mark.parametrize(
    "name",
    [
        "24",
        "0GiB",
        "-3GiB",
        "-1",
        "1e3GiB",
        "٣GiB",
        "9" * 400 + "GiB",
        "1." + "9" * 400 + "G",
    ],
)
def test_a_number_that_is_no_size_is_refused_without_the_name_of_a_card(name: str):
    with pytest.raises(ConfigError, match=r"24GiB") as caught:
        device_named(name)
    assert "closest" not in caught.value.facts
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("name", ["h1000", "GiB", "", "h" * 5000])
def test_an_unknown_device_is_refused_with_those_that_are_known(name: str):
    with pytest.raises(ConfigError, match=r"24GiB") as caught:
        device_named(name)
    assert "rtx4090" in caught.value.facts["known"]


def test_the_cpu_is_this_machine_and_no_speed_is_stored(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cpu = device_named("cpu")
    assert (cpu.kind, cpu.threads, cpu.flops) == ("cpu", 1, {})
    assert cpu.memory_bytes > GIB // 4


@pytest.mark.parametrize("threads", ["²", "٣", "0", "-1", "9" * 5000, "all"])
def test_a_number_of_threads_that_is_none_is_not_counted(monkeypatch, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every = device_named("cpu").threads
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert device_named("cpu").threads == every


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "LIMITS", (str(limit), str(tmp_path / "absent")))
    limit.write_text("max\n")
    whole = device_named("cpu").memory_bytes
    limit.write_text(f"{GIB // 4}\n")
    assert device_named("cpu").memory_bytes == GIB // 4 < whole


@pytest.mark.parametrize(("name", "card"), [("3090", "rtx3090"), ("4090", "rtx4090")])
def test_a_part_of_a_card_s_name_names_the_card(name: str, card: str):
    with pytest.raises(ConfigError, match=f"there is no device '{name}'") as caught:
        device_named(name)
    assert card in str(caught.value.fix)
