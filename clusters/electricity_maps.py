"""Live carbon intensity from Electricity Maps.

https://app.electricitymaps.com/developer-hub/api/reference: ``GET /v3/carbon-intensity/latest?zone=…`` with the key in
the header ``auth-token``. The figure is the zone's average over its consumption, in gCO2eq/kWh, of the hour that begins
at ``datetime``. A rate limit is answered with 429, and, as its users report, with 401 for a key that is right: so a
refused key is tried again at the next refresh.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Protocol

import requests
import urllib3
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from clusters.hourly_figures import HOUR_S, MOST_GCO2_PER_KWH, HourFigure

_LOG = logging.getLogger(__name__)
_CONNECT_S, _READ_S = 5.0, 10.0
# A server that sends a byte now and then never lets a read time out.
_WHOLE_ANSWER_S = 20.0
_MOST_BYTES = 65_536
_FACTORS = "lifecycle"
_ATTEMPTS = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = HOUR_S
_DEFAULT_PAUSE_S = 60.0
_TOO_MANY = 429
_OK = 200
_SERVER_ERRORS = range(500, 600)


class NoFigure(Exception):
    """The service gave no figure for a zone; the message says why, and never holds the key.

    ``is_passing``: asking again soon may help. ``retry_after_s``: no zone is to be asked before.
    """

    def __init__(self, reason: str, *, is_passing: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.is_passing = is_passing
        self.retry_after_s = retry_after_s


class LatestFigures(Protocol):
    """The service, as `ElectricityMaps` asks it."""

    def latest(self, zone: str) -> HourFigure:
        """The zone's newest figure.

        Raises:
            NoFigure: there is none just now.
        """


class _Answer(BaseModel):
    """What ``/carbon-intensity/latest`` answers; the service may add members."""

    model_config = ConfigDict(extra="ignore", strict=False)

    zone: str
    carbon_intensity: Annotated[
        float | None, Field(alias="carbonIntensity", ge=0, le=MOST_GCO2_PER_KWH, allow_inf_nan=False, strict=True)
    ]
    since: Annotated[AwareDatetime, Field(alias="datetime")]
    emission_factor_type: Annotated[str, Field(alias="emissionFactorType")]
    is_estimated: Annotated[bool, Field(alias="isEstimated", strict=True)]
    estimation_method: Annotated[str | None, Field(alias="estimationMethod")] = None


class ElectricityMapsClient:
    """One key's access to the service; the key is in no message, and not in ``repr``."""

    def __init__(
        self, url: str, key: str, *, wall_clock_s: Callable[[], float], answers_within_s: float = _WHOLE_ANSWER_S
    ) -> None:
        """``url`` ends with the version: https://api.electricitymaps.com/v3."""
        self._url = url.rstrip("/")
        self._key = key
        self._wall_clock_s = wall_clock_s
        self._answers_within_s = answers_within_s

    def __repr__(self) -> str:
        return f"ElectricityMapsClient({self._url!r})"

    def latest(self, zone: str) -> HourFigure:
        """As `LatestFigures.latest`; takes at most some seconds."""
        try:
            with requests.get(
                f"{self._url}/carbon-intensity/latest",
                params={"zone": zone, "emissionFactorType": _FACTORS},
                headers={"auth-token": self._key},
                timeout=(_CONNECT_S, _READ_S),
                allow_redirects=False,  # the key is for this host alone
                stream=True,
            ) as response:
                body = self._body(response.raw)
                status, headers = response.status_code, response.headers
        # ValueError: a key with a letter that no header can have.
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as away:
            # Without the cause: what is wrong with a header is told with its value, which is the key.
            raise NoFigure(f"Electricity Maps does not answer: {type(away).__name__}", is_passing=True) from None
        if status != _OK:
            raise _refusal(zone, status, headers, self._wall_clock_s())
        return _figure(zone, body)

    def _body(self, raw: urllib3.BaseHTTPResponse) -> bytes:
        body, give_up = b"", time.monotonic() + self._answers_within_s
        while len(body) < _MOST_BYTES and (more := raw.read1(_MOST_BYTES - len(body), decode_content=True)):
            body += more
            if time.monotonic() > give_up:
                raise TimeoutError
        return body


def _refusal(zone: str, status: int, headers: Mapping[str, str], now_unix_s: float) -> NoFigure:
    reasons = {
        401: "it refuses the key, or too much was asked of it",
        403: f"the key's plan does not cover {zone}",
        404: f"it has no recent data for {zone}",
        _TOO_MANY: "too much was asked of it",
    }
    reason = f"Electricity Maps answered {status}: {reasons.get(status, 'an error')}"
    if status == _TOO_MANY:
        return NoFigure(reason, retry_after_s=_retry_after_s(headers.get("Retry-After"), now_unix_s))
    return NoFigure(reason, is_passing=status in _SERVER_ERRORS)


def _retry_after_s(value: str | None, now_unix_s: float) -> float:
    """RFC 9110, 10.2.3: seconds, or a date; within an hour."""
    if value is None:
        return _DEFAULT_PAUSE_S
    if value.strip().isdigit():
        wanted = float(value)
    else:
        try:
            wanted = parsedate_to_datetime(value).timestamp() - now_unix_s
        except ValueError:
            return _DEFAULT_PAUSE_S
    return min(max(wanted, 0.0), _LONGEST_PAUSE_S)


def _figure(zone: str, body: bytes) -> HourFigure:
    try:
        answer = _Answer.model_validate_json(body)
    except ValidationError as malformed:
        places = ", ".join(".".join(map(str, fault["loc"])) or "body" for fault in malformed.errors())
        raise NoFigure(f"Electricity Maps' answer is not understood: {places}") from None
    if answer.zone != zone:
        # Without data it may turn to where the caller seems to be.
        raise NoFigure(f"Electricity Maps answered for {answer.zone!r} instead of {zone}")
    if answer.emission_factor_type != _FACTORS:
        raise NoFigure(f"Electricity Maps answered with {answer.emission_factor_type!r} factors, not {_FACTORS}")
    if answer.carbon_intensity is None:
        raise NoFigure(f"Electricity Maps has no figure for {zone} now")
    try:
        hour_unix_s = int(answer.since.astimezone(UTC).timestamp()) // HOUR_S * HOUR_S
    except (OverflowError, OSError):
        raise NoFigure(f"Electricity Maps answered for an hour of the year {answer.since.year}") from None
    method = f", {answer.estimation_method}" if answer.is_estimated and answer.estimation_method else ""
    return HourFigure(
        zone=zone,
        gco2_per_kwh=answer.carbon_intensity,
        hour_unix_s=hour_unix_s,
        source=f"Electricity Maps, {_FACTORS}{method}",
        is_estimated=answer.is_estimated,
    )


class ElectricityMaps:
    """An `HourlySource` over the live service: each refresh asks once a zone, and again where that may help.

    ``client`` is None where there is no key; ``missing`` then says so. ``pause`` sleeps that many seconds.
    """

    def __init__(
        self,
        client: LatestFigures | None,
        zones: Iterable[str],
        *,
        missing: str,
        wall_clock_s: Callable[[], float],
        pause: Callable[[float], Any],
    ) -> None:
        self._client = client
        self._zones = tuple(dict.fromkeys(zones))
        self._wall_clock_s = wall_clock_s
        self._pause = pause
        self._not_before_unix_s = 0.0
        self._figures: dict[str, HourFigure] = {}
        self._troubles: dict[str, str] = dict.fromkeys(self._zones, missing if client is None else "not heard yet")

    def refresh(self) -> None:
        """Ask for every zone, unless the service asked for a longer pause."""
        if self._client is None:
            return
        for zone in self._zones:
            # Longer than any pause: the clock was set back.
            if 0 < self._not_before_unix_s - self._wall_clock_s() <= _LONGEST_PAUSE_S:
                return
            try:
                self._figures[zone] = self._ask(self._client, zone)
                self._troubles.pop(zone, None)
            except NoFigure as none:
                if self._troubles.get(zone) != str(none):
                    _LOG.warning("grid zone %s: %s", zone, none)
                self._troubles[zone] = str(none)

    def figure(self, zone: str, now_unix_s: float) -> HourFigure | None:  # noqa: ARG002 - it has only the newest
        """As `HourlySource.figure`."""
        return self._figures.get(zone)

    def trouble(self, zone: str) -> str | None:
        """As `HourlySource.trouble`."""
        return self._troubles.get(zone)

    def _ask(self, client: LatestFigures, zone: str) -> HourFigure:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._once(client, zone)
            except NoFigure as none:
                if not none.is_passing:
                    raise
            self._pause(pause_s)
            pause_s *= 2
        return self._once(client, zone)

    def _once(self, client: LatestFigures, zone: str) -> HourFigure:
        try:
            return client.latest(zone)
        except NoFigure as none:
            if none.retry_after_s is not None:
                self._not_before_unix_s = self._wall_clock_s() + none.retry_after_s
            raise
