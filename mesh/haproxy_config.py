"""The HAProxy configuration that Ray Serve writes, made private.

As Ray 2.60 writes it, it listens on every interface with two pages of statistics, lets every user of the machine
command it, sends each request's path to a system log, and answers its own failures with pages that no client of ours
can read. There is no setting for any of that. What is no HTTP request, has more headers than its buffer takes, or does
not bring them in time, gets HAProxy's own page all the same (400, 408): that one can't be replaced.
"""

import json
import re
from http import HTTPStatus

from serve.error_envelopes import envelope

_STATISTICS = ("frontend prometheus", "listen stats")
_DOOR = "frontend http_frontend"
_NOWHERE = "backend default_backend"
_RETRY_AFTER_S = 2
# HAProxy evaluates this for each answer. Without the hyphens (regsub), as our own ids are, HAProxy 2.8.25 crashes.
_NEW_ID = "%[uuid]"
_ID_MARK = "REQUEST-ID"
_AWAY = "the mesh's door is away; try again in a moment"
_LOST = "the mesh's door was lost while it answered"
_LATE = "the mesh's door did not answer in time"


class ConfigNotUnderstood(Exception):
    """Ray wrote something else than Ray 2.60 does: what is private in it can't be known."""


def made_private(config: str, *, headers_within_s: float) -> str:
    """The same configuration with one listener, an admin socket of its owner's only, no log, and our error envelope.

    A request's headers have ``headers_within_s`` to come.

    Raises:
        ConfigNotUnderstood: it has listeners, or lacks parts, that Ray 2.60's doesn't.
    """
    sections = _sections(config)
    for heading in ("global", "defaults", _DOOR, _NOWHERE):
        if heading not in sections:
            raise ConfigNotUnderstood(f"it has no section {heading!r}")
    for statistics in _STATISTICS:
        sections.pop(statistics, None)
    sections["global"] = _private_socket([line for line in sections["global"] if not line.strip().startswith("log ")])
    sections["defaults"] = [
        *(line for line in sections["defaults"] if not line.strip().startswith("errorfile ")),
        f"    timeout http-request {round(headers_within_s * 1000)}ms",
        *(
            f"    http-error status {status.value} content-type application/json lf-string "
            f'{_as_argument(_body(status, message))} hdr Retry-After "{_RETRY_AFTER_S}"'
            for status, message in (
                (HTTPStatus.BAD_GATEWAY, _LOST),
                (HTTPStatus.SERVICE_UNAVAILABLE, _AWAY),
                (HTTPStatus.GATEWAY_TIMEOUT, _LATE),
            )
        ),
    ]
    sections[_DOOR] += [
        f"    http-response return {_answer(status, message)} if {{ status {condition} }} "
        "{ res.hdr(content-type) -m beg text/plain }"
        # Ray Serve's own answers, which are plain text: ours never are.
        for condition, status, message in (
            ("503", HTTPStatus.SERVICE_UNAVAILABLE, _AWAY),
            ("ge 500", HTTPStatus.BAD_GATEWAY, _LOST),
        )
    ]
    sections[_NOWHERE] = [f"    http-request return {_answer(HTTPStatus.SERVICE_UNAVAILABLE, _AWAY)}"]
    _check_listeners(sections)
    return "".join(f"{line}\n" for heading, lines in sections.items() for line in (heading, *lines))


def _sections(config: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in config.splitlines():
        if re.match(r"[a-z]", line):
            if line in sections:
                raise ConfigNotUnderstood(f"it has section {line!r} twice")
            lines = sections[line.rstrip()] = []
        elif line.strip():
            lines.append(line)
    return sections


def _private_socket(lines: list[str]) -> list[str]:
    private = [re.sub(r"( stats socket \S+ mode )666 ", r"\g<1>600 ", line) for line in lines]
    if sum(" stats socket " in line for line in private) != 1 or private == lines:
        raise ConfigNotUnderstood("its admin socket isn't written as expected")
    return private


def _check_listeners(sections: dict[str, list[str]]) -> None:
    listening = [heading for heading, lines in sections.items() for line in lines if line.split()[:1] == ["bind"]]
    if listening != [_DOOR]:
        raise ConfigNotUnderstood(f"it listens in {listening}, where one listener in {_DOOR!r} is expected")


def _body(status: HTTPStatus, message: str) -> str:
    return json.dumps(envelope(None, status, message, _ID_MARK))


def _answer(status: HTTPStatus, message: str) -> str:
    return (
        f"status {status.value} content-type application/json hdr Retry-After {_RETRY_AFTER_S} "
        f"lf-string {_as_argument(_body(status, message))}"
    )


def _as_argument(text: str) -> str:
    """A log-format string as HAProxy reads it back between double quotes, with a new request id in its place."""
    for special in ("\\", '"', "$"):
        text = text.replace(special, f"\\{special}")
    return '"' + text.replace("%", "%%").replace(_ID_MARK, _NEW_ID) + '"'
