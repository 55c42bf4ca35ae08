"""The energy on receipts, end to end on the real engine: does it add up, and is it fair?

The same work at 1, 8 and 32 at a time; with and without a stranger who burns processor time beside it; ten minutes
of load; two replicas on one host. The book is held against a process that reads the counter for itself.
"""

import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from benchmarks.book_watch import BookCheck, watched
from benchmarks.running_mesh import MeshUnderTest, running_mesh

_PORT = 18473
_ROUNDS = 3
_REQUESTS = 64
_OUTPUT_TOKENS = 32
_BURNER_ROUNDS = 5
_BURNER_REQUESTS = 4
_LOAD_S = float(os.environ.get("JC_BENCH_LOAD_S", "600"))
_LOAD_STREAMS = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with running_mesh(Path(folder) / "one", _PORT) as mesh:
            ask(mesh, 8, 8, salt="warm-up")
            _batches(mesh)
            _burner(mesh)
            _long_load(mesh)
        config = Path(folder) / "two.yaml"
        config.write_text(_two_replicas_config())
        with running_mesh(Path(folder) / "two", _PORT, config=config) as mesh:
            ask(mesh, 8, 8, salt="warm-up")
            with watched(mesh) as check:
                joules = ask(mesh, 16, 64, salt="two replicas")
            _print_book("two replicas, 16 at a time", check)
            replicas = check.after["replicas"]
            print(f"{'':30} receipts {joules:.3f} J; tokens by replica: ", end="")
            print(", ".join(str(each["work"]["decode_tokens"]) for each in replicas))


def _batches(mesh: MeshUnderTest) -> None:
    sums: dict[int, list[float]] = {1: [], 8: [], 32: []}
    for turn in range(_ROUNDS):
        for streams, results in sums.items():
            with watched(mesh) as check:
                results.append(ask(mesh, streams, _REQUESTS, salt=f"batch {turn} {streams}"))
            _print_book(f"{_REQUESTS} requests, {streams} at a time", check)
    alone = statistics.median(sums[1])
    for streams, results in sums.items():
        median = statistics.median(results)
        print(
            f"receipts, {streams:2} at a time: {median:8.3f} J, {median / alone:.3f} of one at a time (goal: <= 1.05)"
        )


def _burner(mesh: MeshUnderTest) -> None:
    """Alternating, so that the machine's own drift falls on both."""
    without: list[float] = []
    beside: list[float] = []
    for turn in range(_BURNER_ROUNDS):
        without.append(ask(mesh, 1, _BURNER_REQUESTS, salt=f"without {turn}"))
        with burning():
            if turn:
                beside.append(ask(mesh, 1, _BURNER_REQUESTS, salt=f"beside {turn}"))
                continue
            with watched(mesh) as check:
                beside.append(ask(mesh, 1, _BURNER_REQUESTS, salt=f"beside {turn}"))
            _print_book("beside a burner", check)
    ratio = statistics.median(beside) / statistics.median(without)
    print(f"receipts beside a burner: {ratio:.3f} of those without it (goal: 0.85 to 1.15)")


def _long_load(mesh: MeshUnderTest) -> None:
    with watched(mesh) as check:
        ask(mesh, _LOAD_STREAMS, lambda began: time.monotonic() - began < _LOAD_S, salt="load")
    _print_book(f"{_LOAD_S:.0f} s of load, {_LOAD_STREAMS} at a time", check)
    magnitude = check.after["trueup_magnitude_microjoules"] - check.before["trueup_magnitude_microjoules"]
    requests = check.after["settled_requests"] - check.before["settled_requests"]
    print(
        f"{requests} requests; sum of |trueup| {magnitude / check.booked_microjoules:.4%} of the total (goal: < 1 %), "
        f"bias {check.account('trueup') / check.booked_microjoules:+.4%}"
    )


def _print_book(title: str, check: BookCheck) -> None:
    booked = check.booked_microjoules
    shares = ", ".join(
        f"{name} {check.account(name) / booked:.1%}"
        for name in ("request", "idle", "foreign", "overhead", "quarantine", "trueup")
    )
    print(
        f"{title:30} book {booked / 1e6:.6f} J, independent reader {check.least_read_microjoules / 1e6:.6f} to "
        f"{check.most_read_microjoules / 1e6:.6f} J: {check.off_quanta:.2f} counter steps apart (goal: <= 2); {shares}",
        flush=True,
    )


def ask(mesh: MeshUnderTest, streams: int, count: int | Callable[[float], bool], *, salt: str) -> float:
    """Send requests, so many at a time; the joules on their receipts together."""
    return asyncio.run(_ask_all(mesh, streams, count, salt))


async def _ask_all(mesh: MeshUnderTest, streams: int, count: int | Callable[[float], bool], salt: str) -> float:
    began = time.monotonic()
    indices = _indices(count, began)
    async with httpx.AsyncClient(timeout=600, headers={"Authorization": f"Bearer {mesh.key}"}) as client:

        async def worker() -> float:
            return sum(
                [await _one(client, mesh.url, f"({index}) Tell a story about this number. {salt}") for index in indices]
            )

        return sum(await asyncio.gather(*(worker() for _ in range(streams))))


def _indices(count: int | Callable[[float], bool], began: float) -> Iterator[int]:
    index = 0
    while index < count if isinstance(count, int) else count(began):
        yield index
        index += 1


async def _one(client: httpx.AsyncClient, url: str, prompt: str) -> float:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = await client.post(f"{url}/v1/chat/completions", json=body)
    response.raise_for_status()
    return float(response.json()["energy"]["joules"])


@contextmanager
def burning() -> Iterator[None]:
    burner = multiprocessing.get_context("spawn").Process(target=_burn, daemon=True)
    burner.start()
    try:
        # Its own start isn't what is to be measured.
        time.sleep(1)
        yield
    finally:
        burner.terminate()
        burner.join()


def _burn() -> None:
    while True:
        pass


def _two_replicas_config() -> str:
    settings = yaml.safe_load((Path(__file__).parents[1] / "clusters" / "local.yaml").read_text())
    settings["pools"][0] |= {"replicas": 2, "cpus_per_replica": 0.5, "threads_per_replica": 1}
    return str(yaml.safe_dump(settings))
