"""What choosing the pool saves: `python -m benchmarks placement` replays days of mixed traffic, and judges nothing.

Real hourly series of two grids and a constant third; made-up traffic, pools and rates (`benchmarks/replay_traffic.py`).
The tier of each request is its label: what the classifier gets wrong is not in here. A request's joules are what it
draws; what idle and waking pools draw is nobody's, and not counted.
"""

import csv
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.replay_day import Auto, Cost, Day, Grid, Largest, Oracle, Policy, RoundRobin, bound, replay, total
from benchmarks.replay_traffic import TruePool, crowded, misled, pools, traffic
from placement.exchange_rates import PREFERENCES
from placement.fleet import Fleet, PoolFacts
from placement.live_figures import LiveFigures
from placement.pins import Pins
from placement.plan import RequestNeeds, plan
from placement.tiers import Tier

DAYS = {"2020-02-22": "windy", "2020-11-27": "coal", "2020-07-06": "middling"}
HARD_DAY = "2020-07-06"
SEEDS = (1, 2, 3)
REQUESTS = 8_000
CONSTANT_ZONE, CONSTANT_GCO2_PER_KWH = "US", 380.0
FLEETS = (3, 100, 1000)
ROUNDS = 5_000
_CARBON = Path(__file__).parents[2] / "shared" / "data" / "carbon"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One day under one seed: how each way to choose did, and what no way does better than, by preference."""

    days: Mapping[str, Day]
    bounds: Mapping[str, Cost]


def main() -> None:
    print_latency()
    missing = [str(_CARBON / f"{zone}.csv") for zone in ("DE", "FR") if not (_CARBON / f"{zone}.csv").is_file()]
    if missing:
        sys.exit(f"the replay needs hourly grid carbon (columns utc_hour, gco2_per_kwh): no {' and no '.join(missing)}")
    began = time.perf_counter()
    fleet = pools()
    for date, wind in DAYS.items():
        grid = read_grid(date)
        runs = [one_run(fleet, grid, seed) for seed in SEEDS]
        print_day(date, wind, grid, runs)
    grid = read_grid(HARD_DAY)
    runs = [one_run(crowded(fleet), grid, seed) for seed in SEEDS]
    print_day(HARD_DAY, "crowded: a third of the room in every pool", grid, runs)
    runs = [one_run(misled(fleet, random.Random(f"{seed} priors")), grid, seed) for seed in SEEDS]  # noqa: S311
    print_day(HARD_DAY, "misled: each pool's prior off by up to four times", grid, runs)
    print(f"\n{(len(DAYS) + 2) * len(SEEDS)} days in {time.perf_counter() - began:.0f} s")


def read_grid(date: str) -> Grid:
    """The day's 24 hours of each zone."""
    grid: dict[str, Sequence[float]] = {CONSTANT_ZONE: [CONSTANT_GCO2_PER_KWH] * 24}
    for zone in ("DE", "FR"):
        with (_CARBON / f"{zone}.csv").open(newline="") as file:
            grid[zone] = [
                float(row["gco2_per_kwh"]) for row in csv.DictReader(file) if row["utc_hour"].startswith(date)
            ]
        assert len(grid[zone]) == 24, f"{zone} has {len(grid[zone])} hours of {date}"
    return grid


def one_run(fleet: Sequence[TruePool], grid: Grid, seed: int) -> Run:
    requests = traffic(REQUESTS, random.Random(seed))  # noqa: S311
    policies: dict[str, Policy] = {
        "largest pool": Largest(fleet),
        "largest model, region by `balanced`": Auto(fleet, grid, PREFERENCES["balanced"], only_largest=True),
        "round robin": RoundRobin(fleet),
    }
    for name, rates in PREFERENCES.items():
        policies[f"auto, {name}"] = Auto(fleet, grid, rates)
    for name, rates in PREFERENCES.items():
        policies[f"oracle, {name}"] = Oracle(fleet, grid, rates)
    return Run(
        days={name: replay(requests, fleet, grid, policy, seed) for name, policy in policies.items()},
        bounds={name: bound(requests, fleet, grid, rates) for name, rates in PREFERENCES.items()},
    )


def print_day(date: str, wind: str, grid: Grid, runs: Sequence[Run]) -> None:
    means = ", ".join(f"{zone} {statistics.mean(hours):.0f}" for zone, hours in sorted(grid.items()))
    print(f"\n### {date}, {wind}: {means} gCO2eq/kWh; about {REQUESTS:,} requests, mean of {len(runs)} seeds\n")
    print("| | kJ | gCO2eq | USD | wait mean, s | p95, s | p99, s | wakes | pins broken |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in runs[0].days:
        print(_policy_row(name, [run.days[name] for run in runs]))
    for name in PREFERENCES:
        costs = [run.bounds[name] for run in runs]
        print(f"| bound, {name} | {_amounts(costs)} | 0 | 0 | 0 | | |")
    print("\nOf the saving over the largest pool, and of the oracle's over round robin (in turn); by seed:\n")
    print("| preference | in | largest | in turn | auto | oracle | bound | of oracle's | of bound's | beyond in turn |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, rates in PREFERENCES.items():
        measures: dict[str, Callable[[Cost], float]] = {"its score, mUSD": lambda c, r=rates: c.score_usd(r) * 1e3}  # type: ignore[misc]
        if name == "cheapest":
            measures["mUSD of energy"] = lambda c: c.usd * 1e3
        if name == "cleanest":
            measures["gCO2eq"] = lambda c: c.grams
        else:
            measures["kJ"] = lambda c: c.joules / 1e3
        for measure, of in measures.items():
            print(_share_row(name, measure, of, runs))


def _policy_row(name: str, days: Sequence[Day]) -> str:
    waits = [np.array([each.waited_s for each in day.costs]) for day in days]
    tails = [statistics.mean(float(np.percentile(each, part)) for each in waits) for part in (95, 99)]
    mean = statistics.mean(float(each.mean()) for each in waits)
    wakes, broken = statistics.mean(day.wakes for day in days), sum(day.violations for day in days)
    amounts = _amounts([total(day.costs) for day in days])
    return f"| {name} | {amounts} | {mean:.1f} | {tails[0]:.1f} | {tails[1]:.1f} | {wakes:.0f} | {broken} |"


def _amounts(costs: Sequence[Cost]) -> str:
    joules, grams, usd = (statistics.mean(getattr(each, part) for each in costs) for part in ("joules", "grams", "usd"))
    return f"{joules / 1e3:,.0f} | {grams:,.1f} | {usd:.4f}"


def _share_row(name: str, measure: str, of: Callable[[Cost], float], runs: Sequence[Run]) -> str:
    largest, turns, auto, oracle = (
        [of(total(run.days[way].costs)) for run in runs]
        for way in ("largest pool", "round robin", f"auto, {name}", f"oracle, {name}")
    )
    least = [of(run.bounds[name]) for run in runs]
    figures = " | ".join(f"{statistics.mean(each):,.1f}" for each in (largest, turns, auto, oracle, least))
    shares = _share(largest, auto, oracle), _share(largest, auto, least), _share(turns, auto, oracle)
    return f"| {name} | {measure} | {figures} | {' | '.join(shares)} |"


def _share(largest: Sequence[float], reached: Sequence[float], best: Sequence[float]) -> str:
    shares = [100 * (a - b) / (a - c) for a, b, c in zip(largest, reached, best, strict=True)]
    return f"{statistics.mean(shares):.1f} % ({min(shares):.1f} to {max(shares):.1f})"


def print_latency() -> None:
    """One plan: the live columns made from the caller's arrays, filters, order, and the first three rows read."""
    print("| pools | p50, us | p99, us | p99 of its thread's own time, us | every row read, p50, us |")
    print("|---:|---:|---:|---:|---:|")
    for count in FLEETS:
        fleet, figures, needs = latency_case(count)
        wall = [_plan_us(fleet, figures, needs, 3, time.perf_counter_ns) for _ in range(ROUNDS)]
        own = [_plan_us(fleet, figures, needs, 3, time.thread_time_ns) for _ in range(ROUNDS)]
        every = [_plan_us(fleet, figures, needs, None, time.perf_counter_ns) for _ in range(ROUNDS // 10)]
        tails = f"{np.percentile(wall, 99):.0f} | {np.percentile(own, 99):.0f}"
        print(f"| {count} | {np.percentile(wall, 50):.0f} | {tails} | {np.median(every):.0f} |")


def latency_case(count: int) -> tuple[Fleet, dict[str, object], RequestNeeds]:
    """Pools of nine models, ten operators and fifty regions, one unavailable; a request with every kind of pin."""
    rng = np.random.default_rng(1)
    base = pools()[0].facts
    facts: list[PoolFacts] = [
        replace(
            base,
            pool=f"m{place % 9}@o{place % 10}/eu-{place % 50}/{place}",
            model=f"m{place % 9}",
            operator=f"o{place % 10}",
            region=f"eu-{place % 50}",
            features=frozenset({"tools"}),
        )
        for place in range(count)
    ]
    unavailable: list[str | None] = [None] * count
    unavailable[count // 2] = "no replica is up"
    names = ("gco2_per_kwh", "microjoules_per_input_token", "microjoules_per_output_token", "wait_s")
    figures: dict[str, object] = {name: rng.uniform(1, 100, count) for name in names}
    figures |= {"unavailable": unavailable, "set_aside": rng.random(count) < 0.05}
    pins = Pins(region="eu", residency=("eu", "ch"), operators=frozenset(f"o{place}" for place in range(8)))
    needs = RequestNeeds(
        pins=pins, tier=Tier.L1, input_tokens=500, output_tokens=100, least_tokens=40, features=frozenset({"tools"})
    )
    return Fleet(facts), figures, needs


def _plan_us(
    fleet: Fleet, figures: dict[str, object], needs: RequestNeeds, rows: int | None, clock_ns: Callable[[], int]
) -> float:
    began = clock_ns()
    made = plan(needs, fleet, LiveFigures(**figures), PREFERENCES["balanced"])  # type: ignore[arg-type]
    made.candidates[:rows]
    if rows is None:
        list(made.rejections)
    return (clock_ns() - began) / 1e3


if __name__ == "__main__":
    main()
