"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from xmodel.inference.engine import Engine
from xmodel.serve.delivery import Answer

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds, as are the others
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "xmodel_http_requests", "Requests answered.", ["endpoint", "status"], registry=self._registry
        )
        self._answers = Counter("xmodel_answers", "Answers by why they ended.", ["finish"], registry=self._registry)
        self._first, self._between, self._whole = (
            Histogram(f"xmodel_{name}_seconds", text, buckets=buckets, registry=self._registry)
            for name, text, buckets in (
                ("time_to_first_token", "From a request to its answer's first token, waiting included.", FIRST),
                ("time_per_token", "Mean time between an answer's tokens.", BETWEEN),
                ("answer", "From a request to its answer's end.", WHOLE),
            )
        )
        self._registry.register(_EngineState(engine, name))

    def answered(self, answer: Answer) -> None:
        """Count an answer that has ended."""
        self._answers.labels(answer.finish or "cancelled").inc()
        if answer.first is None or answer.last is None:
            return
        self._first.observe(answer.first - answer.submitted)
        self._whole.observe(answer.last - answer.submitted)
        if answer.new_tokens > 1:
            self._between.observe((answer.last - answer.first) / (answer.new_tokens - 1))

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineState:
    """The engine's own counts, asked for when somebody reads them."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        for name, text, value in (
            ("running", "Answers that the model works on.", stats.running),
            ("waiting", "Requests in the queue.", stats.waiting),
            ("rows", "Answers that the model can work on at once.", stats.rows),
            ("cache_tokens", "Tokens whose keys and values are kept.", stats.cached_tokens),
            ("cache_capacity_tokens", "Tokens that the cache has room for.", self._engine.cells),
        ):
            yield GaugeMetricFamily(f"xmodel_{name}", text, value=value)
        for name, text, value in (
            ("prompt_tokens", "Tokens of prompts that were read.", stats.prompt_tokens_total),
            ("new_tokens", "Tokens that were made.", stats.new_tokens_total),
        ):
            yield CounterMetricFamily(f"xmodel_{name}", text, value=value)
        info = GaugeMetricFamily("xmodel_model", "The model that is served; always 1.", labels=["model"])
        info.add_metric([self._model], 1)
        yield info
