"""Sleep that a test ends."""

import asyncio


class Sleeper:
    """Sleeps until the test says so."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._wake = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._wake.wait()
        self._wake.clear()

    async def pass_by(self) -> None:
        self._wake.set()
        for _ in range(8):
            await asyncio.sleep(0)
