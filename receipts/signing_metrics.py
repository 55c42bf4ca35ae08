"""Signing as Ray metrics, from the ledger actor's process, for the Prometheus endpoint that every Ray node has.

Ray puts ``ray_`` before each name. `clusters/grafana-dashboard.json` draws them; a test holds its names to these.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from receipts.ledger_writer import Backlog

_NS_PER_S: Final = 1e9
_SECOND_BOUNDS: Final = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600]

METRICS: Final[Mapping[str, str]] = {
    "joule_mesh_unsigned_receipts": "Receipts that wait for the group's signature.",
    "joule_mesh_oldest_unsigned_receipt_seconds": "How long the oldest of them has waited; 0 when none waits.",
    "joule_mesh_receipts_signed_total": "Receipts that the group has signed.",
    "joule_mesh_time_to_signature_seconds": "From a receipt's commit to its signature's.",
}


class SigningMetrics:
    """The signing's metrics, in the process that makes them."""

    def __init__(self) -> None:
        self._unsigned = Gauge("joule_mesh_unsigned_receipts", METRICS["joule_mesh_unsigned_receipts"])
        self._oldest = Gauge(
            "joule_mesh_oldest_unsigned_receipt_seconds", METRICS["joule_mesh_oldest_unsigned_receipt_seconds"]
        )
        self._signed = Counter("joule_mesh_receipts_signed_total", METRICS["joule_mesh_receipts_signed_total"])
        self._time = Histogram(
            "joule_mesh_time_to_signature_seconds",
            METRICS["joule_mesh_time_to_signature_seconds"],
            boundaries=_SECOND_BOUNDS,
        )

    def show(self, backlog: Backlog, now_unix_ns: int) -> None:
        """Bring the backlog up to date."""
        self._unsigned.set(backlog.count)
        oldest = backlog.oldest_unix_ns
        self._oldest.set(0.0 if oldest is None else max(0, now_unix_ns - oldest) / _NS_PER_S)

    def signed(self, waited_ns: Sequence[int]) -> None:
        """Count receipts that were signed, each after so long."""
        self._signed.inc(len(waited_ns))
        for each in waited_ns:
            # Ray takes no zero.
            self._time.observe(max(each / _NS_PER_S, _SECOND_BOUNDS[0] / 2))
