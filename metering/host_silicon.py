"""The silicon of a host as the meter detected it, and what of it cannot be metered."""

from collections.abc import Sequence

from metering.calibration import CalibrationRecord
from metering.counters.detect import Sensors
from metering.settlement import MeteredSilicon


def metered_silicon(sensors: Sensors, device_ids: Sequence[str], node: str) -> MeteredSilicon:
    """These GPUs, or without any the CPU."""
    if device_ids:
        models = dict.fromkeys(sensors.gpu_models.get(device, "unknown") for device in device_ids)
        return MeteredSilicon(vendor="nvidia", model=" + ".join(models), device_ids=tuple(device_ids), node=node)
    return MeteredSilicon(
        vendor=sensors.cpu.vendor,
        model=sensors.cpu.model,
        device_ids=tuple(f"cpu-package-{package}" for package in sensors.cpu.packages),
        node=node,
    )


def unmeterable(sensors: Sensors) -> tuple[str, ...]:
    """Silicon whose energy can't be known at all, a line each; work on it is not billed."""
    counted = {counter.facts.device_id for counter in sensors.devices}
    lines = [
        f"{device}: {model} has no energy counter that can be read"
        for device, model in sensors.gpu_models.items()
        if device not in counted
    ]
    if not sensors.host:
        lines.append(f"cpu: {host_unavailable(sensors)}")
    return tuple(lines)


def host_unavailable(sensors: Sensors) -> str:
    """Why work on the CPU alone has no energy figure here."""
    return sensors.host_unavailable or "this host has no energy counter"


def check_record(record: CalibrationRecord, sensors: Sensors, silicon: str) -> None:
    """A record is of use on the silicon, and with the counters, that it was measured on.

    Raises:
        CalibrationRefused: this is other silicon, or it is measured by other counters.
    """
    record.check_fits(silicon, (counter.facts.method for counter in (*sensors.devices, *sensors.host)))
