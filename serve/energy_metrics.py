"""The meters' figures as Ray metrics, so that they stand in the Prometheus endpoint that every Ray node has.

Ray puts ``ray_`` before each name. `clusters/grafana-dashboard.json` draws them; a test holds its names to these.
"""

from collections.abc import Mapping
from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from metering.meter_report import MeterReport
from metering.settlement import Settlement

_MICROJOULES: Final = 1e6
_MILLIWATTS: Final = 1e3
_JOULE_BOUNDS: Final = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]

METRICS: Final[Mapping[str, str]] = {
    "joule_mesh_counted_joules_total": "Energy that a device's counter has counted, since the book began.",
    "joule_mesh_account_joules": "Energy in an account of the book; the accounts sum to what was counted.",
    "joule_mesh_identity_error_joules": "The accounts' sum less what was counted: always zero, or the book is broken.",
    "joule_mesh_power_watts": "A device's mean power over its last intervals.",
    "joule_mesh_trueup_share_ratio": "What receipts closed on estimates were off, without sign, over what was counted.",
    "joule_mesh_trueup_bias_ratio": "The same with its sign: above zero, receipts were too low.",
    "joule_mesh_open_requests": "Requests that run.",
    "joule_mesh_unacknowledged_settlements": "Settlements that the ledger has not acknowledged.",
    "joule_mesh_receipts_total": "Requests with a receipt, by model and method confidence.",
    "joule_mesh_receipt_joules_total": "Energy on receipts, by model: over the number of receipts, the mean of one.",
    "joule_mesh_request_joules": "Distribution of the energy of a request; Ray's sum of it is only a rough one.",
}


class EnergyMetrics:
    """One meter's metrics, in the process that makes them."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._counted_so_far: dict[str, int] = {}
        device = ("node", "device", "method", "scope")
        self._counted = _counter("joule_mesh_counted_joules_total", device)
        self._power = _gauge("joule_mesh_power_watts", device)
        self._accounts = _gauge("joule_mesh_account_joules", ("node", "account"))
        self._identity_error = _gauge("joule_mesh_identity_error_joules", ("node",))
        self._trueup_share = _gauge("joule_mesh_trueup_share_ratio", ("node",))
        self._trueup_bias = _gauge("joule_mesh_trueup_bias_ratio", ("node",))
        self._open = _gauge("joule_mesh_open_requests", ("node",))
        self._unacknowledged = _gauge("joule_mesh_unacknowledged_settlements", ("node",))
        self._receipts = _counter("joule_mesh_receipts_total", ("node", "model", "confidence"))
        self._receipt_joules = _counter("joule_mesh_receipt_joules_total", ("node", "model"))
        self._request_joules = Histogram(
            "joule_mesh_request_joules",
            METRICS["joule_mesh_request_joules"],
            boundaries=_JOULE_BOUNDS,
            tag_keys=("node", "model"),
        )

    def show(self, report: MeterReport) -> None:
        """Bring everything but the receipts up to date."""
        node = {"node": self._node}
        for device in report.devices:
            tags = {**node, "device": device.device_id, "method": device.method, "scope": device.scope}
            new = device.counted_microjoules - self._counted_so_far.get(device.device_id, 0)
            self._counted_so_far[device.device_id] = device.counted_microjoules
            if new > 0:
                self._counted.inc(new / _MICROJOULES, tags)
            if device.power_milliwatts is not None:
                self._power.set(device.power_milliwatts / _MILLIWATTS, tags)
        for account, microjoules in report.totals.accounts().items():
            self._accounts.set(microjoules / _MICROJOULES, {**node, "account": account})
        self._identity_error.set(report.identity_error_microjoules / _MICROJOULES, node)
        if report.trueup_share is not None and report.trueup_bias is not None:
            self._trueup_share.set(report.trueup_share, node)
            self._trueup_bias.set(report.trueup_bias, node)
        self._open.set(report.open_requests, node)
        self._unacknowledged.set(report.unacknowledged, node)

    def settled(self, settlement: Settlement, model: str) -> None:
        """Count a settlement that became a receipt."""
        tags = {"node": self._node, "model": model}
        self._receipts.inc(1, {**tags, "confidence": settlement.energy.method_confidence})
        microjoules = settlement.energy.total_microjoules
        if microjoules:
            self._receipt_joules.inc(microjoules / _MICROJOULES, tags)
        if microjoules is not None:
            self._request_joules.observe(max(microjoules / _MICROJOULES, _JOULE_BOUNDS[0] / 2), tags)


def _counter(name: str, tag_keys: tuple[str, ...]) -> Counter:
    return Counter(name, METRICS[name], tag_keys)


def _gauge(name: str, tag_keys: tuple[str, ...]) -> Gauge:
    return Gauge(name, METRICS[name], tag_keys)
