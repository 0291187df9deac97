"""Figures of the server for Prometheus: what came, what it cost, what was refused and why.

All names begin with `sote_`; cluster/deploy/grafana/serve.json draws each of them. Labels are few by construction:
routes by template, reasons and limits by fixed words, never a prompt, a key or a path. Figures of the replicas are
Ray's (`ray_serve_*`).

Kind: pure.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sote.serve.service import Painting
from sote.serve.settings import Settings, StageName, Work

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
STAGES: Final[tuple[StageName, ...]] = ("prior", "decoder")
# Seconds: from an answer of a miniature model to hours on a CPU; a full-size picture on a GPU takes 0.5 to 30
BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 1200)

Reason = Literal["refused", "busy", "withheld", "cancelled", "no memory", "failed", "lost", "error"]
LimitName = Literal["requests_per_minute", "concurrency", "max_pixels", "max_steps", "max_images", "blocked_tags"]


class Figures:
    """The figures of one ingress, in a registry of their own. All methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_requests()
        self._of_paintings()
        self._of_the_rest()

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered. `route` is a route's template."""
        self.requests.labels(route, method, str(status)).inc()
        self.request_seconds.labels(route, method).observe(seconds)

    def painted(self, painting: Painting, settings: Settings) -> None:
        """A painting was handed out."""
        self.images.labels(settings.output_format).inc(len(painting.images))
        self.painting_seconds.observe(painting.seconds)
        for work in painting.work:
            self._worked(work)

    def failed(self, reason: Reason) -> None:
        """A painting gave no picture."""
        self.failures.labels(reason).inc()

    def refused(self, limit: LimitName) -> None:
        """A request was beyond what its key may ask for."""
        self.refusals.labels(limit).inc()

    def jobs(self, states: Mapping[str, int]) -> None:
        """How many jobs there are in each state now."""
        self.jobs_in.clear()
        for state, count in states.items():
            self.jobs_in.labels(state).set(count)

    @contextlib.contextmanager
    def inside(self, stage: StageName) -> Iterator[None]:
        """Counts a request as being at a stage while the block runs: for who hands requests to the replicas."""
        with self.stage_requests.labels(stage).track_inprogress():
            yield

    def text(self) -> bytes:
        """All figures, as Prometheus reads them (CONTENT_TYPE)."""
        return generate_latest(self.registry)

    def _worked(self, work: Work) -> None:
        self.stage_seconds.labels(work.stage).observe(max(work.seconds - work.waited_seconds, 0.0))
        self.waited_seconds.labels(work.stage).observe(work.waited_seconds)
        self.megapixel_steps.labels(work.stage).inc(work.megapixel_steps)
        for pictures, steps in work.occupancy.items():
            self.steps.labels(work.stage, str(pictures)).inc(steps)
            self.picture_steps.labels(work.stage).inc(pictures * steps)

    def _of_requests(self) -> None:
        self.requests = self._counter("sote_requests", "Requests answered", "route", "method", "status")
        self.request_seconds = self._histogram("sote_request_seconds", "Request to end of answer", "route", "method")
        self.requests_in_flight = self._gauge("sote_requests_in_flight", "Requests that are being answered")

    def _of_paintings(self) -> None:
        self.paintings_in_flight = self._gauge("sote_paintings_in_flight", "Paintings in line or at work")
        self.stage_requests = self._gauge("sote_stage_requests", "Paintings at a stage or in line for it", "stage")
        self.painting_seconds = self._histogram("sote_painting_seconds", "From the line to the last picture")
        self.stage_seconds = self._histogram("sote_stage_seconds", "At a stage, without the wait", "stage")
        self.waited_seconds = self._histogram("sote_stage_waited_seconds", "Waited for the first step", "stage")
        self.steps = self._counter("sote_batch_steps", "Steps by how many pictures took them", "stage", "pictures")
        self.picture_steps = self._counter("sote_batch_picture_steps", "Steps times pictures in them", "stage")
        self.megapixel_steps = self._counter("sote_megapixel_steps", "Megapixels of pictures times steps", "stage")
        for stage in STAGES:  # they are there, as 0, before the first painting
            self.stage_requests.labels(stage)
            self.picture_steps.labels(stage)
            self.megapixel_steps.labels(stage)

    def _of_the_rest(self) -> None:
        self.images = self._counter("sote_images", "Pictures handed out", "format")
        self.failures = self._counter("sote_failures", "Paintings that gave no picture", "reason")
        self.refusals = self._counter("sote_refusals", "Requests beyond what is allowed", "limit")
        self.jobs_in = self._gauge("sote_jobs", "Jobs that are kept", "state")
        self.log_lines_lost = self._counter("sote_access_log_lost", "Lines that the access log could not write")

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(name, what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(name, what, labels, registry=self.registry, buckets=BUCKETS)
