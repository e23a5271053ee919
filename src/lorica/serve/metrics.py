"""What Prometheus scrapes: requests, tokens, latencies, and which adapters are resident.

Labels are bounded. Counters name the first LABELS models that answered, and tenants that asked,
and call all others "other": a label that changed its meaning would make a counter fall. Gauges of
adapters name the LABELS largest ones.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Lock

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from lorica.serve.exchange import End, Engine, Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = 50
OTHER = "other"
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Counts of seconds in buckets. The event loop alone adds to it, so it needs no lock: a token
    costs one bisection."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        total, buckets = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.sum)


class Metrics(Collector):
    """Counts of what the engine answered, joined with its own figures when it is scraped."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.requests: Counter[tuple[str, str]] = Counter()  # (model, why it ended)
        self.replies: Counter[int] = Counter()  # by status
        self.prompt_tokens: Counter[str] = Counter()
        self.completion_tokens: Counter[str] = Counter()
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.between_tokens = Histogram(BETWEEN_TOKENS_SECONDS)
        self.by_tenant: Counter[tuple[str, str]] = Counter()  # (tenant, why it ended)
        self.tenant_prompt_tokens: Counter[str] = Counter()
        self.tenant_completion_tokens: Counter[str] = Counter()
        self._labels: set[str] = set()
        self._tenants: set[str] = set()
        self._lock = Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The page that Prometheus reads, as CONTENT_TYPE."""
        return generate_latest(self._registry)

    def observe(self, served: Served, tenant: str, since: float) -> "AnswerMetrics":
        """What measures an answer. since: time of `perf_counter` when its request came."""
        model = self._label(self._labels, served.alias or served.model)
        return AnswerMetrics(self, model, self._label(self._tenants, tenant), since)

    def count_reply(self, status: int) -> None:
        """Count a reply of HTTP; 499: the client went away."""
        self.replies[status] += 1

    def _label(self, labels: set[str], name: str) -> str:
        with self._lock:
            if name not in labels and len(labels) < LABELS:
                labels.add(name)
            return name if name in labels else OTHER

    def collect(self) -> Iterator[Metric]:
        yield _endings("lorica_requests", "model", self.requests)
        replies = CounterMetricFamily(
            "lorica_http_replies", "Replies by status.", labels=["status"]
        )
        for status, count in list(self.replies.items()):
            replies.add_metric([str(status)], count)
        yield replies
        yield _tokens("lorica_prompt_tokens", "model", self.prompt_tokens)
        yield _tokens("lorica_generation_tokens", "model", self.completion_tokens)
        yield _endings("lorica_tenant_requests", "tenant", self.by_tenant)
        yield _tokens("lorica_tenant_prompt_tokens", "tenant", self.tenant_prompt_tokens)
        yield _tokens("lorica_tenant_generation_tokens", "tenant", self.tenant_completion_tokens)
        yield self.first_token.family(
            "lorica_time_to_first_token_seconds", "From the request to the first token."
        )
        yield self.between_tokens.family(
            "lorica_time_between_tokens_seconds", "Between two tokens of an answer."
        )
        yield from self._engine_figures()
        yield from self._adapters()

    def _engine_figures(self) -> Iterator[Metric]:
        stats = self.engine.stats()
        yield GaugeMetricFamily("lorica_requests_waiting", "Answers in the queue.", stats.queued)
        yield GaugeMetricFamily("lorica_requests_running", "Answers in a slot.", stats.running)
        yield GaugeMetricFamily("lorica_slots", "Answers that can run at once.", stats.slots)
        yield GaugeMetricFamily("lorica_ready", "1: takes requests.", int(self.engine.is_ready))
        yield GaugeMetricFamily("lorica_draining", "1: stops.", int(self.engine.is_draining))
        yield GaugeMetricFamily(
            "lorica_adapter_bytes", "Bytes of all resident adapters.", stats.resident_bytes
        )
        yield CounterMetricFamily("lorica_adapter_loads", "Adapters loaded.", stats.loads)
        yield CounterMetricFamily("lorica_adapter_evictions", "Adapters evicted.", stats.evictions)
        seconds = sorted(stats.load_seconds) or [0.0]
        latest = GaugeMetricFamily(
            "lorica_adapter_load_seconds", "Of the latest 100 loads.", labels=["quantile"]
        )
        for quantile in (0.5, 0.95, 1.0):
            place = min(int(quantile * len(seconds)), len(seconds) - 1)
            latest.add_metric([str(quantile)], seconds[place])
        yield latest

    def _adapters(self) -> Iterator[Metric]:
        """Residency of the LABELS largest adapters, and the sum of the others."""
        resident = GaugeMetricFamily(
            "lorica_adapter_resident_bytes", "Bytes of an adapter; 0: evicted.", labels=["model"]
        )
        states = GaugeMetricFamily("lorica_adapters", "Adapters, by their state.", labels=["state"])
        pinned = GaugeMetricFamily("lorica_adapters_pinned", "Adapters that are pinned.")
        cards = [card for card in self.engine.cards() if card.parent is not None]
        cards.sort(key=lambda card: (-card.resident_bytes, card.name))
        for card in cards[:LABELS]:
            resident.add_metric([card.name], card.resident_bytes)
        if rest := cards[LABELS:]:
            resident.add_metric([OTHER], sum(card.resident_bytes for card in rest))
        for state, count in Counter(card.state for card in cards).items():
            states.add_metric([state], count)
        pinned.add_metric([], sum(card.pinned for card in cards))
        yield from (resident, states, pinned)


class AnswerMetrics:
    """Measures one answer, from its request to its end."""

    def __init__(self, metrics: Metrics, model: str, tenant: str, since: float):
        self._metrics, self._model, self._tenant = metrics, model, tenant
        self._last, self._is_first = since, True

    def on_piece(self, tokens: int) -> None:
        """A piece with `tokens` tokens: all but the last are taken to come evenly."""
        if not tokens:
            return
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self._is_first:
            self._is_first = False
            self._metrics.first_token.add(seconds)
            return
        for _ in range(tokens):
            self._metrics.between_tokens.add(seconds / tokens)

    def on_end(self, end: End) -> None:
        metrics = self._metrics
        metrics.requests[self._model, end.reason] += 1
        metrics.prompt_tokens[self._model] += end.prompt_tokens
        metrics.completion_tokens[self._model] += end.completion_tokens
        metrics.by_tenant[self._tenant, end.reason] += 1
        metrics.tenant_prompt_tokens[self._tenant] += end.prompt_tokens
        metrics.tenant_completion_tokens[self._tenant] += end.completion_tokens


def _endings(name: str, label: str, counts: Counter[tuple[str, str]]) -> CounterMetricFamily:
    text = f"Answers that ended, by {label} and reason."
    family = CounterMetricFamily(name, text, labels=[label, "reason"])
    for (value, reason), count in list(counts.items()):
        family.add_metric([value, reason], count)
    return family


def _tokens(name: str, label: str, counts: Counter[str]) -> CounterMetricFamily:
    text = f"Tokens {'of prompts' if 'prompt' in name else 'written'}, by {label}."
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in list(counts.items()):
        family.add_metric([value], count)
    return family
