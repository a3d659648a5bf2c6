"""Prometheus metrics of a runtime, through ``prometheus-client`` (the extra ``tocom[metrics]``).

    from prometheus_client import start_http_server
    from tocom.runtime.monitoring.metrics import register_metrics

    register_metrics(runtime)
    start_http_server(9100)

Values are read from :meth:`Runtime.stats` when Prometheus asks for them; a request pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tocom.errors import RequestError
from tocom.runtime.runtime import Runtime

__all__ = ["RuntimeCollector", "register_metrics"]

_COUNTERS = {
    "misses": "Requests that missed their budget",
    "infeasible": "Requests whose budget no degree was expected to meet",
    "switches": "Changes of degree between two requests",
    "failures": "Requests that the device failed",
    "refusals": "Requests refused because no degree was expected to meet their budget",
    "reloads": "Bundles swapped while serving",
}
_LABELLED = {
    "errors": ("Requests that ended in an error, by its kind", "kind"),
    "dropped": ("Frames that a newer one of their source replaced, or that could not be read", "source"),
}


class RuntimeCollector:
    """Turns a runtime's statistics into metric families.

    Args:
        runtime: The runtime to watch.
        name: Value of the label ``runtime``, to tell several in one process apart.
    """

    def __init__(self, runtime: Runtime, name: str = "default") -> None:
        try:
            from prometheus_client import core
        except ImportError as error:
            raise RequestError(
                "Metrics need the package prometheus-client. Install it: pip install 'tocom[metrics]'."
            ) from error
        self._core = core
        self._runtime = runtime
        self._name = name

    def collect(self) -> Iterator[Any]:
        """Yield the metric families as of now."""
        stats, core = self._runtime.stats(), self._core
        answers = core.CounterMetricFamily(
            "tocom_requests", "Answered requests by degree", labels=["runtime", "degree"]
        )
        for degree, count in stats["answers"].items():
            answers.add_metric([self._name, degree], count)
        yield answers
        for key, text in _COUNTERS.items():
            counter = core.CounterMetricFamily(f"tocom_{key}", text, labels=["runtime"])
            counter.add_metric([self._name], stats[key])
            yield counter
        for key, (text, label) in _LABELLED.items():
            counter = core.CounterMetricFamily(
                f"tocom_{'frames_dropped' if key == 'dropped' else key}", text, labels=["runtime", label]
            )
            for value, count in stats[key].items():
                counter.add_metric([self._name, value], count)
            yield counter
        for key, text in (("latency_ms", "Recent latency"), ("queue_ms", "Recent time spent queueing")):
            gauge = core.GaugeMetricFamily(
                f"tocom_{key.removesuffix('_ms')}_seconds", text, labels=["runtime", "quantile"]
            )
            for quantile, value in stats[key].items():
                gauge.add_metric([self._name, str(int(quantile[1:]) / 100)], value / 1e3)
            yield gauge
        drift = core.GaugeMetricFamily(
            "tocom_latency_drift", "Device latency over the profile's; above 1 it is slower", labels=["runtime"]
        )
        if stats["latency_model"] is not None:
            drift.add_metric([self._name], stats["latency_model"]["drift"])
        yield drift
        right = core.GaugeMetricFamily(
            "tocom_degree_answers_rightly",
            "1 where the degree gave the reference answers when it was opened; 0: it is not served",
            labels=["runtime", "degree"],
        )
        for degree, found in stats["answers_checked"].items():
            right.add_metric([self._name, degree], found["right"])
        yield right
        memory = core.GaugeMetricFamily("tocom_estimated_bytes", "Estimated memory of the engines", labels=["runtime"])
        memory.add_metric([self._name], stats["estimated_bytes"])
        yield memory


def register_metrics(runtime: Runtime, *, name: str = "default", registry: Any = None) -> RuntimeCollector:
    """Register a runtime's metrics and return the collector.

    Args:
        runtime: The runtime to watch.
        name: Value of the label ``runtime``.
        registry: A ``CollectorRegistry``; None takes the default one.

    Raises:
        RequestError: prometheus-client is not installed.
    """
    collector = RuntimeCollector(runtime, name)
    if registry is None:
        from prometheus_client import REGISTRY as registry
    registry.register(collector)
    return collector
