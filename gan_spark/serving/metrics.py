"""Figures of the service, as Prometheus reads them at /metrics."""

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one service."""

    def __init__(self):
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "gan_spark_requests", "requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "gan_spark_request_seconds",
            "from a request's head to its answer",
            ["path"],
            registry=registry,
            buckets=SECONDS,
        )
        self.batches = Histogram(
            "gan_spark_batch_rows",
            "rows that were computed at once",
            ["call"],
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.images = Counter("gan_spark_images", "rows that were computed", ["call", "version"], registry=registry)
        self.classes = Counter("gan_spark_classes", "images by the likeliest class", ["label"], registry=registry)
        self.waiting = Gauge("gan_spark_waiting", "rows that wait to be computed", registry=registry)
        self.version = Gauge(
            "gan_spark_version",
            "share of the requests that a version answers",
            ["version", "run", "step"],
            registry=registry,
        )
        self.refused = Gauge(
            "gan_spark_refused_versions", "versions of the registry that cannot be loaded", registry=registry
        )
        self.unreachable = Gauge(
            "gan_spark_registry_unreachable", "1 where the registry cannot be read", registry=registry
        )

    def text(self) -> bytes:
        return prometheus_client.generate_latest(self.registry)
