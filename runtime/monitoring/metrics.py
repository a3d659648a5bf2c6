"""Prometheus metrics of a runtime, through ``prometheus-client`` (the extra ``tocom[metrics]``).

    from prometheus_client import start_http_server
    from tocom.runtime.monitoring.metrics import register_metrics

    register_metrics(runtime)
    start_http_server(9100)

Values are read from :meth:`Runtime.stats` when Prometheus asks for them; a request pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        stats, counter, gauge = self._runtime.stats(), self._core.CounterMetricFamily, self._core.GaugeMetricFamily
        yield self._family(counter, "requests", "Answered requests by degree", "degree", stats["answers"])
        for key, text in _COUNTERS.items():
            yield self._family(counter, key, text, None, {"": stats[key]})
        for key, (text, label) in _LABELLED.items():
            yield self._family(counter, "frames_dropped" if key == "dropped" else key, text, label, stats[key])
        for key, text in (("latency_ms", "Recent latency"), ("queue_ms", "Recent time spent queueing")):
            seconds = {str(int(quantile[1:]) / 100): ms / 1e3 for quantile, ms in stats[key].items()}
            yield self._family(gauge, f"{key.removesuffix('_ms')}_seconds", text, "quantile", seconds)
        drift = {} if stats["latency_model"] is None else {"": stats["latency_model"]["drift"]}
        yield self._family(
            gauge, "latency_drift", "Device latency over the profile's; above 1 it is slower", None, drift
        )
        yield self._family(
            gauge,
            "degree_answers_rightly",
            "1 where the degree gave the reference answers when it was opened; 0: it is not served",
            "degree",
            {degree: found["right"] for degree, found in stats["answers_checked"].items()},
        )
        memory = {"": stats["estimated_bytes"]}
        yield self._family(gauge, "estimated_bytes", "Estimated memory of the engines", None, memory)

    def _family(self, kind: Any, name: str, text: str, label: str | None, values: Mapping[str, float]) -> Any:
        """Return a metric family of values by their label; of one without a label the key means nothing."""
        family = kind(f"tocom_{name}", text, labels=["runtime", *([] if label is None else [label])])
        for key, value in values.items():
            family.add_metric([self._name, *([] if label is None else [key])], value)
        return family


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
