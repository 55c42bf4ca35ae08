import asyncio

from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from serve.door_limits import DoorLimits, LimitedDoor

_HTTP = {"type": "http", "state": {"request_id": "0" * 32}}


def refuse(_scope: Scope) -> PlainTextResponse:
    return PlainTextResponse("no room", 503)


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


class Client:
    """Keeps what it was sent; it takes ``reads`` messages, and then no more."""

    def __init__(self, reads: int = 100) -> None:
        self.messages: list[Message] = []
        self._reads = reads

    async def send(self, message: Message) -> None:
        if len(self.messages) >= self._reads:
            await asyncio.sleep(3600)
        self.messages.append(message)


class Streaming:
    """An application that sends pieces until it is stopped; ``ended`` says how."""

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self.ended: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for index in range(self._pieces):
                await send({"type": "http.response.body", "body": b"piece", "more_body": index < self._pieces - 1})
        except BaseException as error:
            self.ended = type(error).__name__
            raise
        self.ended = "whole"


async def test_an_answer_that_is_read_passes_untouched():
    app, client = Streaming(3), Client()
    await LimitedDoor(app, DoorLimits(most_requests=1, slow_reader_s=5), refuse)(_HTTP, receive, client.send)
    assert app.ended == "whole"
    assert [each.get("body") for each in client.messages] == [None, b"piece", b"piece", b"piece"]


async def test_an_answer_that_nobody_reads_is_given_up_inside_the_application(caplog):
    app, client = Streaming(3), Client(reads=2)
    await LimitedDoor(app, DoorLimits(most_requests=1, slow_reader_s=0.01), refuse)(_HTTP, receive, client.send)
    assert app.ended == "_ReaderTooSlow"
    assert len(client.messages) == 2
    assert "0" * 32 in caplog.text


async def test_a_timeout_of_the_connection_s_own_is_no_slow_reader():
    async def broken(_message: Message) -> None:
        raise TimeoutError

    app = Streaming(1)
    door = LimitedDoor(app, DoorLimits(most_requests=1, slow_reader_s=5), refuse)
    try:
        await door(_HTTP, receive, broken)
    except TimeoutError:
        assert app.ended == "TimeoutError"
    else:
        raise AssertionError("it was swallowed")


async def test_what_is_more_than_the_limit_is_refused_and_there_is_room_again_afterwards():
    release = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await PlainTextResponse("done")(scope, receive, send)

    door = LimitedDoor(slow, DoorLimits(most_requests=2, slow_reader_s=5), refuse)
    first = [Client(), Client()]
    under_way = [asyncio.create_task(door(_HTTP, receive, each.send)) for each in first]
    await asyncio.sleep(0)
    refused = Client()
    await door(_HTTP, receive, refused.send)
    assert refused.messages[0]["status"] == 503
    release.set()
    await asyncio.gather(*under_way)
    assert [each.messages[0]["status"] for each in first] == [200, 200]
    taken = Client()
    await door(_HTTP, receive, taken.send)
    assert taken.messages[0]["status"] == 200


async def test_one_that_fails_or_is_cancelled_leaves_its_room():
    async def fails(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.sleep(0)
        raise ValueError

    door = LimitedDoor(fails, DoorLimits(most_requests=1, slow_reader_s=5), refuse)
    for _ in range(3):
        client = Client()
        task = asyncio.create_task(door(_HTTP, receive, client.send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not client.messages
        again = await asyncio.gather(door(_HTTP, receive, client.send), return_exceptions=True)
        assert isinstance(again[0], ValueError)


async def test_only_http_is_limited():
    seen = []

    async def lifespan(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    await LimitedDoor(lifespan, DoorLimits(most_requests=0, slow_reader_s=5), refuse)(
        {"type": "lifespan"}, receive, Client().send
    )
    assert seen == ["lifespan"]
