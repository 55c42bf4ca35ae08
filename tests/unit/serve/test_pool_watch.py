"""Which pools can serve, as Ray Serve's and Ray's words of them have it; and the watch that asks for them."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from clusters.nodes import OPERATOR_LABEL, REGION_LABEL, Inventory, NodeCatalogue, NodeFacts
from clusters.sites import Site
from placement.tiers import Tier
from serve.pool_waker import PoolWaker
from serve.pool_watch import DeploymentState, PoolsSeen, PoolWatch, pools_seen
from serve.pools import Pool

KEY = "small@acme/eu-fi"
LABELS = {OPERATOR_LABEL: "acme", REGION_LABEL: "eu-fi"}
CATALOGUE = NodeCatalogue(sites=frozenset({("acme", "eu-fi")}), kinds={})
POOL = Pool(
    key=KEY,
    model="small",
    model_revision=None,
    site=Site(
        operator="acme",
        legal_entity=None,
        region="eu-fi",
        country="FI",
        grid_zone="FI",
        dc_pue=1.0,
        dc_ref_renewable_share=None,
    ),
    silicon=None,
    capable_up_to=Tier.L3,
    context_tokens=2048,
    features=frozenset({"generate"}),
    prior_microjoules_per_token=1e5,
    usd_per_kwh=0.5,
    max_ongoing=4,
    wake_s=60,
    simulated=False,
)


def node(labels: Mapping[str, str] = LABELS, *, is_alive: bool = True) -> NodeFacts:
    return NodeFacts(node_id="1", name="n1", address="127.0.0.1", is_alive=is_alive, labels=labels, cpus=1.0, gpus=0.0)


def seen(state: DeploymentState | None, *, pool: Pool = POOL, nodes: tuple[NodeFacts, ...] = (node(),)) -> PoolsSeen:
    deployments = {} if state is None else {"small--acme--eu-fi": state}
    return pools_seen({KEY: pool}, deployments, {KEY: LABELS}, Inventory.read(nodes, CATALOGUE))


def state(running: int, coming: int = 0, status: str = "HEALTHY", message: str = "") -> DeploymentState:
    return DeploymentState(status=status, running=running, coming=coming, message=message)


class TestWhoCanServe:
    def test_replicas_that_run_and_those_on_their_way(self):
        assert seen(state(2, 1)) == PoolsSeen(running={KEY: 2}, wanted={KEY: 3}, unavailable={}, details={})

    @pytest.mark.parametrize(
        ("nodes", "reason"),
        [
            ((), "no living node"),
            ((node(is_alive=False),), "no living node"),
            ((node({}),), "no living node"),
            ((node({**LABELS, "joule-mesh.io/silicon": "moon"}),), "is refused"),
        ],
    )
    def test_a_pool_without_an_accepted_living_node_cannot(self, nodes: tuple[NodeFacts, ...], reason: str):
        look = seen(state(1), nodes=nodes)
        assert look.unavailable[KEY] == "no node that may carry it is there and accepted"
        assert reason in look.details[KEY]

    def test_a_pool_that_is_not_deployed_cannot(self):
        assert seen(None).unavailable[KEY] == "it is not deployed"

    def test_one_whose_replica_died_is_waited_for_while_another_comes(self):
        assert not seen(state(0, 1, "UNHEALTHY")).unavailable

    def test_one_of_which_nothing_runs_nor_comes_cannot(self):
        assert seen(state(0)).unavailable[KEY] == "none of its replicas runs"

    def test_a_sleeping_one_can(self):
        assert not seen(state(0), pool=replace(POOL, least_replicas=0)).unavailable

    def test_a_sleeping_one_that_cannot_start_says_why(self):
        broken = state(0, status="DEPLOY_FAILED", message="The deployment failed.\nno weights in /srv/secret")
        look = seen(broken, pool=replace(POOL, least_replicas=0))
        assert look.unavailable[KEY] == "its replicas do not start"
        assert look.details[KEY].endswith(": no weights in /srv/secret")


class View:
    def __init__(self) -> None:
        self.seen: list[tuple[Mapping[str, int], Mapping[str, str], Mapping[str, int]]] = []

    def see(self, replicas: Mapping[str, int], unavailable: Mapping[str, str], wanted: Mapping[str, int]) -> None:
        self.seen.append((replicas, unavailable, wanted))


class TestTheWatch:
    async def test_it_passes_on_what_it_sees_and_wakes_what_is_next(self):
        view, woken = View(), []
        watch = PoolWatch(view, lambda: seen(state(1)), next_to_wake=lambda: "b", wake=woken.append)
        await watch.look_once()
        assert view.seen == [({KEY: 1}, {}, {KEY: 1})]
        assert woken == ["b"]

    async def test_operators_are_told_what_is_the_matter_once_and_clients_never(self, caplog: pytest.LogCaptureFixture):
        looks = iter([seen(state(1), nodes=()), seen(state(1), nodes=()), seen(state(1)), seen(state(1), nodes=())])
        view = View()
        watch = PoolWatch(view, lambda: next(looks), next_to_wake=lambda: None, wake=lambda _: None)
        for _ in range(4):
            await watch.look_once()
        assert [record.message for record in caplog.records] == [
            f"{KEY} can't serve: no living node carries joule-mesh.io/operator=acme, joule-mesh.io/region=eu-fi"
        ] * 2
        assert "joule-mesh.io" not in str(view.seen)

    async def test_it_survives_a_controller_that_is_away(self, caplog: pytest.LogCaptureFixture):
        view = View()
        looks = iter([ConnectionError("away"), ConnectionError("away"), seen(state(1)), RuntimeError("again")])

        def look() -> PoolsSeen:
            look = next(looks)
            if isinstance(look, Exception):
                raise look
            return look

        watch = PoolWatch(view, look, next_to_wake=lambda: None, wake=lambda _: None)
        for _ in range(4):
            await watch.look_once()
        assert len(view.seen) == 1
        assert [record.message for record in caplog.records] == [
            "the pools can't be seen now: ConnectionError",
            "the pools can't be seen now: RuntimeError",
        ]

    async def test_what_goes_wrong_after_the_look_does_not_end_it_either(self):
        def fails() -> str | None:
            raise ValueError("no such figure")

        view = View()
        watch = PoolWatch(view, lambda: seen(state(1)), next_to_wake=fails, wake=lambda _: None)
        await watch.look_once()
        await watch.look_once()
        assert len(view.seen) == 2

    async def test_it_goes_on_until_it_is_cancelled(self):
        looked = asyncio.Event()
        watch = PoolWatch(View(), lambda: seen(state(1)), next_to_wake=looked.set, wake=lambda _: None)
        running = asyncio.create_task(watch.run())
        await looked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


class FakeHandle:
    def __init__(self, *, fails: bool = False) -> None:
        self.asked = 0
        self.awake = asyncio.Event()
        self.check_health = self
        self._fails = fails

    def remote(self) -> "asyncio.Task[None]":
        self.asked += 1
        self.answer = asyncio.create_task(self._answer())
        return self.answer

    async def _answer(self) -> None:
        await self.awake.wait()
        if self._fails:
            raise RuntimeError("it does not start")


class Books:
    def __init__(self, wakes_in_s: float = 60.0) -> None:
        self.in_flight = 0
        self.wakes_in_s = wakes_in_s
        self.was_given_back = asyncio.Event()

    def took(self, pool: str) -> None:
        self.in_flight += 1

    def gave_back(self, pool: str, service_s: float | None) -> None:
        assert service_s is None
        self.in_flight -= 1
        self.was_given_back.set()

    def wake_s(self, pool: str) -> float:
        return self.wakes_in_s


@pytest.mark.parametrize("fails", [False, True])
async def test_a_pool_is_woken_by_one_request_that_counts_until_it_is_awake(fails: bool):
    handle, books = FakeHandle(fails=fails), Books()
    waker = PoolWaker(books, {"a": handle})  # type: ignore[dict-item]
    waker.wake("a")
    waker.wake("a")
    await asyncio.sleep(0)
    assert (handle.asked, books.in_flight) == (1, 1)
    handle.awake.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert books.in_flight == 0
    waker.wake("a")
    await asyncio.sleep(0)
    assert handle.asked == 2


async def test_a_waking_that_comes_to_nothing_is_given_up_and_asks_for_no_replica_any_more():
    handle, books = FakeHandle(), Books(wakes_in_s=0.01)
    PoolWaker(books, {"a": handle}).wake("a")  # type: ignore[dict-item]
    await asyncio.sleep(0)
    assert books.in_flight == 1
    async with asyncio.timeout(5):
        await books.was_given_back.wait()
    assert handle.answer.cancelled()
    assert books.in_flight == 0
