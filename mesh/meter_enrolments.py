"""The signers get to know the host meters: at the start, and again and again for those that were away then."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from receipts.errors import ReceiptsError
from receipts.meter_enrolment import MeterEnrolment
from serve.messages import MeterCard

if TYPE_CHECKING:  # ray reads its environment when it is imported, which must not be before `start_ray`
    from ray.actor import ActorHandle

    from receipts.signer_actors import RaySigner

_LOG = logging.getLogger(__name__)
_EVERY_S = 30.0
_ENDS_WITHIN_S = 10.0


class MeterEnrolments:
    """Signers sign only what an enrolled meter has stated.

    A signer that was down, or a meter that finds other counters when it starts anew, is met at the next turn.
    """

    def __init__(
        self, signers: Mapping[int, "RaySigner"], meters: Mapping[str, "ActorHandle[Any]"], *, needed: int
    ) -> None:
        """``meters`` by their host; ``needed`` signers must know each one, or its receipts wait."""
        self._signers = signers
        self._meters = dict(meters)
        self._needed = needed
        self._troubles: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="meter-enrolments", daemon=True)

    def start(self) -> None:
        """Enrol now, and go on in a thread.

        Raises:
            QuorumUnavailable: too few signers know a meter.
        """
        for meter in self._meters.values():
            self._enrol(meter)
        self._thread.start()

    def add(self, host: str, meter: "ActorHandle[Any]") -> None:
        """Enrol the meter of a host that joined, or its new one; if that fails now, at the next turn."""
        self._meters = {**self._meters, host: meter}
        self._try(host, meter)

    def stop(self) -> None:
        """Go on no longer; returns when no call is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_ENDS_WITHIN_S)

    def _go_on(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            for host, meter in self._meters.items():
                self._try(host, meter)

    def _try(self, host: str, meter: "ActorHandle[Any]") -> None:
        from ray.exceptions import RayError

        try:
            self._enrol(meter)
            self._troubles.pop(host, None)
        except (RayError, ReceiptsError) as away:
            trouble = type(away).__name__
            if self._troubles.get(host) != trouble:
                _LOG.warning("a meter is not known to enough signers; its receipts wait: %s", away)
            self._troubles[host] = trouble

    def _enrol(self, meter: "ActorHandle[Any]") -> None:
        import ray

        from receipts.meter_enrolling import enrol_meter

        card = cast("MeterCard", ray.get(meter.card.remote(), timeout=_EVERY_S))
        enrolment = MeterEnrolment(
            public_key=card.public_key, node=card.node, maximum_power_milliwatts=card.maximum_power_milliwatts
        )
        asyncio.run(enrol_meter(self._signers, enrolment, needed=self._needed))
