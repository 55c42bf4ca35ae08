"""What an ingress plans with: grids, learned energy, its own load, wakings, pins."""

from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters.grid import GridIntensity, UnknownZone
from clusters.sites import Site
from placement.pins import Pins
from placement.plan import PREFERENCES, ExchangeRates
from placement.tiers import Tier
from serve.chat_request import parse_chat
from serve.errors import RequestRefused
from serve.planner import Planner, PoolNow
from serve.pools import Pool

BY_PRICE = ExchangeRates(usd_per_kgco2=0, usd_per_hour_waited=0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Grids:
    """Grams by zone; counts how often it is asked."""

    def __init__(self, **grams: float) -> None:
        self.grams = grams
        self.asked = 0

    def intensity(self, zone: str) -> GridIntensity:
        self.asked += 1
        if zone not in self.grams:
            raise UnknownZone(zone)
        return GridIntensity(zone=zone, gco2_per_kwh=self.grams[zone], source="test", as_of="now", is_estimated=False)


class Health:
    def __init__(self) -> None:
        self.aside: set[str] = set()

    def set_aside(self) -> set[str]:
        return self.aside


def site(region: str = "eu-fi", *, operator: str = "acme", country: str = "FI", zone: str = "FI") -> Site:
    return Site(
        operator=operator,
        legal_entity=None,
        region=region,
        country=country,
        grid_zone=zone,
        dc_pue=1.2,
        dc_ref_renewable_share=None,
    )


def pool(key: str, **rest: Any) -> Pool:
    figures: dict[str, Any] = {
        "model": "small",
        "model_revision": "r1",
        "site": site(),
        "silicon": None,
        "capable_up_to": Tier.L3,
        "context_tokens": 2048,
        "features": frozenset({"generate"}),
        "prior_microjoules_per_token": 1e5,
        "usd_per_kwh": 0.5,
        "max_ongoing": 4,
        "wake_s": 60.0,
        "simulated": False,
        **rest,
    }
    return Pool(key=key, **figures)


class Mesh:
    """A planner and everything that it stands on."""

    def __init__(self, *pools: Pool, rates: ExchangeRates = BY_PRICE, ingresses: int = 1, **grams: float) -> None:
        self.clock, self.grids, self.health = Clock(), Grids(**(grams or {"FI": 70.0})), Health()
        self.planner = Planner(
            {each.key: each for each in pools}, self.grids, rates, self.health, self.clock, ingresses=ingresses
        )

    def order(self, pins: Pins | None = None, **body: Any) -> list[str]:
        planned = self.planner.plan(chat(**body), Tier.L0, pins or Pins())
        return [candidate.pool for candidate in planned.candidates]

    def now(self, key: str) -> PoolNow:
        return next(each for each in self.planner.pools_now() if each.pool.key == key)

    def wait_s(self, key: str) -> float:
        candidates = self.planner.plan(chat(), Tier.L0, Pins()).candidates
        return next(candidate.wait_s for candidate in candidates if candidate.pool == key)


def chat(**body: Any) -> Any:
    whole = {"model": "auto", "messages": [{"role": "user", "content": "Who wrote Faust?"}], **body}
    return parse_chat(whole, 100)


class TestWhatItRanksBy:
    def test_a_cleaner_grid_takes_over_within_a_second_of_the_feed(self):
        mesh = Mesh(
            pool("a", site=site(zone="DE")),
            pool("b", site=site(zone="FR")),
            rates=PREFERENCES["cleanest"],
            DE=50.0,
            FR=60.0,
        )
        assert mesh.order() == ["a", "b"]
        mesh.grids.grams["DE"] = 300.0
        mesh.clock.now_s += 1.0
        assert mesh.order() == ["b", "a"]

    def test_the_feed_is_asked_once_for_a_zone_and_not_for_each_request(self):
        mesh = Mesh(*(pool(f"p{number}", site=site(zone="DE")) for number in range(20)), DE=50.0)
        for _ in range(50):
            mesh.order()
        assert mesh.grids.asked == 1

    def test_what_was_settled_teaches_which_pool_is_thrifty(self):
        mesh = Mesh(pool("a"), pool("b"))
        for _ in range(20):
            mesh.planner.learn("b", 10, 100, 1_000_000)
            mesh.planner.learn("a", 10, 100, 100_000_000)
        assert mesh.order() == ["b", "a"]
        rates = mesh.planner.token_rates("b")
        assert rates.microjoules(10, 100) < 2_000_000

    def test_energy_that_is_not_known_teaches_nothing(self):
        mesh = Mesh(pool("a"))
        before = mesh.planner.token_rates("a")
        mesh.planner.learn("a", 10, 100, None)
        assert mesh.planner.token_rates("a") == before

    def test_short_answers_teach_that_a_dear_waking_is_not_worth_it(self):
        mesh = Mesh(pool("a"))
        before = mesh.planner.needs(chat(), Tier.L0, Pins()).output_tokens
        for _ in range(100):
            mesh.planner.learn_length(Tier.L0, 5, None)
        assert mesh.planner.needs(chat(), Tier.L0, Pins()).output_tokens < before / 4

    def test_all_choices_of_a_request_count(self):
        mesh = Mesh(pool("a"))
        one = mesh.planner.needs(chat(max_tokens=20), Tier.L3, Pins()).output_tokens
        assert mesh.planner.needs(chat(max_tokens=20, n=3), Tier.L3, Pins()).output_tokens == 3 * one

    def test_a_prompt_goes_where_it_surely_fits(self):
        """The small one has room for 1,750 tokens at 4 characters each, and its engine refuses 2,333 at 3."""
        mesh = Mesh(pool("small"), pool("large", usd_per_kwh=5.0, context_tokens=8192))
        said = [{"role": "user", "content": "x" * 7000}]
        assert mesh.order(messages=said) == ["large", "small"]
        assert mesh.order(messages=[{"role": "user", "content": "x" * 700}]) == ["small", "large"]

    def test_more_tokens_than_a_context_holds_go_to_a_larger_one_or_nowhere(self):
        mesh = Mesh(pool("small"), pool("large", usd_per_kwh=5.0, context_tokens=8192))
        assert mesh.order(max_tokens=4096) == ["large"]
        assert mesh.order(max_tokens=10_000) == []

    def test_a_pool_that_failed_lately_ranks_last(self):
        mesh = Mesh(pool("a"), pool("b", usd_per_kwh=5.0))
        assert mesh.order() == ["a", "b"]
        mesh.health.aside.add("a")
        assert mesh.order() == ["b", "a"]
        assert mesh.now("a").is_set_aside


class TestWaits:
    def test_a_pool_with_room_has_no_wait_and_a_full_one_has(self):
        mesh = Mesh(pool("a"))
        for _ in range(3):
            mesh.planner.took("a")
        assert mesh.wait_s("a") == 0
        mesh.planner.took("a")
        assert mesh.wait_s("a") > 0
        mesh.planner.gave_back("a", None)
        assert mesh.wait_s("a") == 0

    def test_a_full_pool_sends_the_next_request_to_the_next_pool(self):
        mesh = Mesh(pool("a"), pool("b", usd_per_kwh=0.6), rates=PREFERENCES["balanced"])
        assert mesh.order()[0] == "a"
        for _ in range(8):
            mesh.planner.took("a")
        assert mesh.order()[0] == "b"

    def test_what_is_about_to_go_there_counts_for_those_that_are_planned_meanwhile(self):
        mesh = Mesh(pool("a"), pool("b", usd_per_kwh=0.6), rates=PREFERENCES["balanced"])
        with ExitStack() as under_way:
            for _ in range(8):
                under_way.enter_context(mesh.planner.expecting("a"))
            assert mesh.order()[0] == "b"
        assert (mesh.order()[0], mesh.now("a").in_flight) == ("a", 0)

    def test_the_time_of_answers_is_learned(self):
        slow, quick = Mesh(pool("a")), Mesh(pool("a"))
        for mesh, seconds in ((slow, 60.0), (quick, 0.1)):
            for _ in range(50):
                mesh.planner.took("a")
                mesh.planner.gave_back("a", seconds)
            for _ in range(8):
                mesh.planner.took("a")
        assert slow.wait_s("a") > 10 * quick.wait_s("a")

    def test_other_ingresses_are_taken_to_send_as_much(self):
        mesh = Mesh(pool("a"), ingresses=2)
        mesh.planner.took("a")
        assert mesh.wait_s("a") == 0
        mesh.planner.took("a")
        assert mesh.wait_s("a") > 0

    def test_giving_back_what_was_not_taken_is_a_mistake_of_ours(self):
        with pytest.raises(AssertionError):
            Mesh(pool("a")).planner.gave_back("a", None)

    @given(st.lists(st.sampled_from("ab"), max_size=60))
    def test_what_is_in_flight_is_what_was_taken_and_not_given_back(self, taken: list[str]):
        mesh = Mesh(pool("a"), pool("b"))
        for key in taken:
            mesh.planner.took(key)
        assert [mesh.now(key).in_flight for key in "ab"] == [taken.count("a"), taken.count("b")]
        for key in taken:
            mesh.planner.gave_back(key, 1.0)
        assert [mesh.now(key).in_flight for key in "ab"] == [0, 0]


class TestSleepingPools:
    def sleeping(self, **rest: Any) -> Mesh:
        return Mesh(pool("a", least_replicas=0, most_replicas=2), pool("b", usd_per_kwh=0.6), **rest)

    def test_a_waking_costs_its_wait(self):
        mesh = self.sleeping(rates=PREFERENCES["balanced"])
        assert mesh.planner.is_asleep("a")
        assert not mesh.planner.is_asleep("b")
        assert mesh.wait_s("a") == 60
        assert mesh.order() == ["b", "a"]

    def test_by_price_alone_the_sleeping_one_is_woken(self):
        assert self.sleeping().order() == ["a", "b"]

    def test_what_is_left_of_a_waking_shrinks_and_is_never_nothing(self):
        mesh = self.sleeping()
        mesh.planner.took("a")
        mesh.clock.now_s += 20
        assert mesh.wait_s("a") == pytest.approx(40)
        mesh.clock.now_s += 40
        assert mesh.wait_s("a") == pytest.approx(6)

    def test_a_waking_that_comes_to_nothing_draws_no_more_requests(self):
        mesh = self.sleeping(rates=ExchangeRates(usd_per_kgco2=0, usd_per_hour_waited=1e-5))
        assert mesh.order()[0] == "a"
        mesh.planner.took("a")
        mesh.planner.see({"a": 0, "b": 1}, {}, {"a": 1, "b": 1})
        mesh.clock.now_s += 3600
        assert mesh.order()[0] == "b"

    def test_a_waking_that_ended_with_nothing_is_forgotten(self):
        mesh = self.sleeping()
        mesh.planner.took("a")
        mesh.planner.see({"a": 0, "b": 1}, {}, {"a": 1, "b": 1})
        mesh.planner.gave_back("a", None)
        mesh.planner.see({"a": 0, "b": 1}, {}, {"a": 0, "b": 1})
        mesh.clock.now_s += 5000
        assert mesh.wait_s("a") == 60
        self.wakes(mesh, 60)
        assert mesh.planner.wake_s("a") == pytest.approx(60)

    def test_wakings_teach_how_long_they_take(self):
        mesh = self.sleeping()
        for _ in range(8):
            self.wakes(mesh, 10)
        assert mesh.planner.wake_s("a") == pytest.approx((2 * 60 + 8 * 10) / 10)
        assert mesh.planner.wake_s("b") == 60

    def test_one_waking_that_took_hours_does_not_close_a_pool_for_good(self):
        """Its node was away, say: with the hours as its wait nobody would ever wake it again, and learn better."""
        mesh = self.sleeping()
        for _ in range(20):
            self.wakes(mesh, 60)
        self.wakes(mesh, 7200)
        assert mesh.planner.wake_s("a") < 120

    def wakes(self, mesh: Mesh, wake_s: float) -> None:
        mesh.planner.took("a")
        mesh.planner.see({"a": 0, "b": 1}, {}, {"a": 1, "b": 1})
        mesh.clock.now_s += wake_s
        mesh.planner.see({"a": 1, "b": 1}, {}, {"a": 1, "b": 1})
        assert not mesh.planner.is_asleep("a")
        mesh.planner.gave_back("a", 1.0)
        mesh.planner.see({"a": 0, "b": 1}, {}, {"a": 0, "b": 1})

    def test_a_client_that_went_before_anything_started_leaves_no_waking_behind(self):
        mesh = self.sleeping()
        mesh.planner.took("a")
        mesh.planner.gave_back("a", None)
        mesh.clock.now_s += 50
        assert mesh.wait_s("a") == 60

    def test_a_fixed_pool_whose_replicas_died_is_one_to_wait_for(self):
        mesh = Mesh(pool("b", wake_s=30.0))
        mesh.planner.see({"b": 0}, {}, {"b": 1})
        assert mesh.planner.is_asleep("b")
        assert mesh.wait_s("b") == 30

    def test_the_next_in_rank_is_woken_ahead_when_the_first_is_full(self):
        mesh = Mesh(pool("a"), pool("b", usd_per_kwh=0.6, least_replicas=0), rates=PREFERENCES["balanced"])
        assert mesh.planner.next_to_wake() is None
        mesh.order()
        assert mesh.planner.next_to_wake() is None
        for _ in range(4):
            mesh.planner.took("a")
        assert mesh.planner.next_to_wake() == "b"
        mesh.planner.took("b")
        assert mesh.planner.next_to_wake() is None

    def test_no_pool_is_woken_where_the_last_request_may_not_run(self):
        elsewhere = pool("b", least_replicas=0, site=site("us-east", country="US"))
        mesh = Mesh(pool("a"), elsewhere)
        mesh.order(Pins(region="eu"))
        for _ in range(4):
            mesh.planner.took("a")
        assert mesh.planner.next_to_wake() is None


class TestPins:
    def test_a_region_pin_rejects_with_the_reason(self):
        mesh = Mesh(pool("a"), pool("b", site=site("us-east", country="US")))
        planned = mesh.planner.plan(chat(), Tier.L0, Pins(region="us"))
        assert [each.pool for each in planned.candidates] == ["b"]
        (refused,) = planned.rejections
        assert (refused.pool, refused.is_for_now) == ("a", False)
        assert "eu-fi" in refused.reason

    def test_a_named_model_is_pinned_and_auto_is_not(self):
        mesh = Mesh(pool("a"), pool("b", model="large"))
        assert mesh.order(model="large") == ["b"]
        assert set(mesh.order(model="auto")) == {"a", "b"}

    def test_an_unknown_model_is_not_found(self):
        with pytest.raises(RequestRefused) as refused:
            Mesh(pool("a")).order(model="gpt-9")
        assert refused.value.status is HTTPStatus.NOT_FOUND
        assert "small" in refused.value.message

    def test_a_pool_that_is_unavailable_is_refused_for_now(self):
        mesh = Mesh(pool("a"))
        mesh.planner.see({"a": 0}, {"a": "no living node carries it"}, {"a": 0})
        planned = mesh.planner.plan(chat(), Tier.L0, Pins())
        assert not planned.candidates
        assert (planned.rejections[0].reason, planned.rejections[0].is_for_now) == ("no living node carries it", True)
        mesh.planner.see({"a": 1}, {}, {"a": 1})
        assert mesh.order() == ["a"]


def test_the_pools_as_they_stand():
    mesh = Mesh(replace(pool("a"), least_replicas=0, most_replicas=3))
    mesh.planner.took("a")
    mesh.planner.see({"a": 0}, {"a": "why not"}, {"a": 1})
    now = mesh.now("a")
    assert (now.replicas_running, now.replicas_wanted, now.in_flight) == (0, 1, 1)
    assert (now.gco2_per_kwh, now.unavailable, now.is_asleep, now.is_set_aside) == (70.0, "why not", True, False)
    assert now.microjoules_per_output_token > now.microjoules_per_input_token > 0
