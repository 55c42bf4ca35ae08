"""What no counter has closed yet: an estimate of what a replica's requests drew since the last closed interval."""

from collections.abc import Iterable

from metering.attribution import RequestShare, Shares
from metering.host_counters import HostCounters
from metering.metered_replica import MeteredReplica
from metering.replica_roster import ReplicaRoster
from metering.request_account import RequestAccount


def open_parts(
    replica: MeteredReplica, until_ns: int, *, roster: ReplicaRoster, counters: HostCounters
) -> list[Shares] | None:
    """What each of a replica's groups of counters has probably drawn since its last closed interval, divided.

    Floor times time, and the replica's time in steps times the power of its steps of late. ``None`` while no
    interval with a step of the replica has told that power, unless only a millisecond can be open.
    """
    parts = []
    for group in replica.groups:
        if group.begin_ns >= until_ns or not group.facts:
            continue
        runners = roster.on(group)
        loads = [runner.load(group.begin_ns, until_ns) for runner in runners]
        load = loads[runners.index(replica)]
        grains = replica.step_power.grains(group, load.steps_ns)
        if grains is None and not group.closes_at_will:
            return None
        parts.append(counters.divide_open(group, until_ns, grains or 0, load, loads))
    return parts


def open_part_of(
    account: RequestAccount, replica: MeteredReplica, until_ns: int, *, roster: ReplicaRoster, counters: HostCounters
) -> RequestShare | None:
    """The request's share of its replica's open parts; ``None`` where these can't be estimated."""
    if account.resident_from_ns is None:
        return RequestShare()
    parts = open_parts(replica, until_ns, roster=roster, counters=counters)
    return None if parts is None else part_of(account.serial, parts)


def part_of(serial: int, parts: Iterable[Shares]) -> RequestShare:
    """One request's share of all of them."""
    whole = RequestShare()
    for shares in parts:
        if (share := shares.requests.get(serial)) is not None:
            whole.add(share)
    return whole
