"""What Prometheus reads, with its own parser."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from lorica.serve import metrics
from lorica.serve.exchange import End, ModelCard, Served
from tests.serve.live_server import create_gate
from tests.serve.word_engine import WordEngine


def samples(text: str) -> dict[tuple[str, str], float]:
    """(name, values of its labels) -> value."""
    return {
        (sample.name, " ".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_tokens_and_latencies_are_counted():
    with TestClient(create_gate(WordEngine()), base_url="http://localhost") as client:
        for stream in (False, True):
            body = {"model": "alice", "prompt": "long", "max_tokens": 9, "stream": stream}
            assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/completions", json={"model": "x", "prompt": "y"}).status_code == 404
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = samples(reply.text)
    assert values["lorica_requests_total", "alice length"] == 2
    assert values["lorica_prompt_tokens_total", "alice"] == 8
    assert values["lorica_generation_tokens_total", "alice"] == 18
    assert values["lorica_tenant_requests_total", "length local"] == 2
    assert values["lorica_tenant_prompt_tokens_total", "local"] == 8
    assert values["lorica_tenant_generation_tokens_total", "local"] == 18
    assert values["lorica_time_to_first_token_seconds_count", ""] == 2
    assert values["lorica_time_between_tokens_seconds_count", ""] == 16
    assert values["lorica_http_replies_total", "200"] == 2
    assert values["lorica_http_replies_total", "404"] == 1
    assert values["lorica_adapter_resident_bytes", "alice"] == 100
    assert values["lorica_adapters", "evicted"] == values["lorica_adapters_pinned", ""] == 1
    assert values["lorica_adapter_evictions_total", ""] == 1
    assert values["lorica_adapter_load_seconds", "1.0"] == 0.5
    assert values["lorica_slots", ""] == 8 and values["lorica_ready", ""] == 1


def test_buckets_are_cumulative_and_hold_the_bound():
    histogram = metrics.Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.add(seconds)
    counts = {s.labels.get("le"): s.value for s in histogram.family("x", "y").samples}
    assert (counts["0.1"], counts["1.0"], counts["+Inf"]) == (2, 3, 4)
    assert histogram.sum == pytest.approx(7.65)


def test_labels_are_bounded_however_many_adapters_come_and_go():
    engine = WordEngine()
    observed = metrics.Metrics(engine)
    for number in range(1000):
        name = f"adapter-{number}"
        served = Served(name, name, "digest", 1)
        observed.observe(served, f"tenant-{number}", 0.0).on_end(End("stop", 1, 1))
        engine.models[name] = ModelCard(name, "base", "d", 1, "resident", resident_bytes=number)
    values = samples(observed.text().decode())
    for name in (
        "lorica_requests_total",
        "lorica_prompt_tokens_total",
        "lorica_tenant_requests_total",
        "lorica_tenant_prompt_tokens_total",
    ):
        labels = [labels for metric, labels in values if metric == name]
        assert len(labels) == metrics.LABELS + 1
        assert sum(values[name, label] for label in labels) == 1000
    resident = {
        labels: v for (name, labels), v in values.items() if name.endswith("resident_bytes")
    }
    assert len(resident) == metrics.LABELS + 1 and resident["adapter-999"] == 999
    assert sum(resident.values()) == sum(range(1000)) + 100


def test_names_of_adapters_cannot_break_the_page():
    engine = WordEngine()
    name = 'a"b\\c\nd'
    engine.models[name] = replace(engine.models["alice"], name=name, resident_bytes=5)
    values = samples(metrics.Metrics(engine).text().decode())
    assert values["lorica_adapter_resident_bytes", name] == 5
