"""As `serve.seam`, of Anthropic's streams: cuts a resumed one to what its client doesn't have yet."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from serve.errors import SeamBroken
from serve.messages import DONE

_DATA: Final = b"data: "
_TEXTS: Final = {
    "text_delta": "text",
    "input_json_delta": "partial_json",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}

_Place = tuple[str, int | None]


class MessagesSeam:
    """Cuts a resumed stream, which begins at the message's beginning, to what lies beyond the events already sent.

    The two may cut the texts of blocks into other pieces: these are matched by position, everything else by having
    been sent. The message's id and those of tools stay the first attempt's, and so does the signature of thinking,
    which each attempt makes at random.
    """

    def __init__(self, sent: Sequence[bytes]) -> None:
        self._sent: dict[_Place, Mapping[str, Any]] = {}
        self._texts: dict[_Place, str] = defaultdict(str)
        self._position: dict[_Place, int] = defaultdict(int)
        for event in sent:
            said = _parsed(event)
            place, delta = _place(said), said.get("delta", {})
            if (member := _TEXTS.get(delta.get("type"))) is not None:
                self._texts[place] += delta[member]
            else:
                self._sent.setdefault(place, said)

    def beyond(self, event: bytes) -> tuple[bytes, ...]:
        """What of the resumed stream's next event the client doesn't have yet: nothing, or one event.

        Raises:
            SeamBroken: it contradicts what was sent.
        """
        if event == DONE:
            return (event,)
        said = _parsed(event)
        place, delta = _place(said), said.get("delta", {})
        if (member := _TEXTS.get(delta.get("type"))) is not None:
            return self._cut(event, said, place, member)
        if said["type"] == "content_block_start":
            self._check_kind(place, said)
        elif said["type"] == "content_block_stop":
            self._check_covered(place[1])
        elif said["type"] == "message_delta":
            self._check_blocks()
        return () if place in self._sent else (event,)

    def _cut(self, event: bytes, said: dict[str, Any], place: _Place, member: str) -> tuple[bytes, ...]:
        piece: str = said["delta"][member]
        begin = self._position[place]
        self._position[place] = begin + len(piece)
        again = self._texts.get(place, "")[begin : begin + len(piece)]
        if not again:
            if ("content_block_stop", place[1]) in self._sent:
                raise SeamBroken(f"{member} goes on after its end")
            return (event,)
        if member == "signature":
            return ()
        if not piece.startswith(again):
            raise SeamBroken(f"{member} differs from what was sent")
        rest = piece[len(again) :]
        if not rest:
            return ()
        head, mark, _ = event.partition(_DATA)
        cut = {**said, "delta": {**said["delta"], member: rest}}
        return (head + mark + json.dumps(cut, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n",)

    def _check_kind(self, place: _Place, said: Mapping[str, Any]) -> None:
        sent = self._sent.get(place)
        if sent is None:
            return
        for name in ("type", "name"):
            if sent["content_block"].get(name) != said["content_block"].get(name):
                raise SeamBroken(f"content_block.{name} differs from what was sent")

    def _check_blocks(self) -> None:
        """At the message's end, all blocks that were sent must have come again."""
        for _, index in self._texts:
            self._check_covered(index)

    def _check_covered(self, index: int | None) -> None:
        """At its block's end, all text that was sent of it must have come again."""
        for place, text in self._texts.items():
            if place[1] == index and place[0] != "signature_delta" and self._position[place] < len(text):
                raise SeamBroken(f"{_TEXTS[place[0]]} ends before what was sent")


def _place(said: Mapping[str, Any]) -> _Place:
    """What an event tells of: a kind of text of a block, or a kind of event of a block or of the message."""
    kind = said.get("delta", {}).get("type")
    return (kind if kind in _TEXTS else said["type"], said.get("index"))


def _parsed(event: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(event.partition(_DATA)[2])
    return said
