"""The requests that run on a host, and what engine steps and counters tell about them."""

from collections.abc import Iterator, Mapping, Sequence

from metering.engine_steps import StepBegan, StepEnded, StepEvent, StepsLost
from metering.journal import BegunRequest
from metering.metered_replica import MeteredReplica
from metering.request_account import RequestAccount


class OpenRequests:
    """Accounts by request id: one attempt at each request at a time."""

    def __init__(self) -> None:
        self._accounts: dict[str, RequestAccount] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def __iter__(self) -> Iterator[RequestAccount]:
        """A snapshot: accounts may be closed meanwhile."""
        return iter(tuple(self._accounts.values()))

    def get(self, request_id: str) -> RequestAccount | None:
        """The open attempt at this request."""
        return self._accounts.get(request_id)

    def on(self, replica: str) -> Iterator[RequestAccount]:
        """The open attempts on this replica."""
        return (account for account in self if account.replica == replica)

    def open(self, begun: BegunRequest) -> RequestAccount:
        """Open an account for an attempt that has begun."""
        self._serial += 1
        account = RequestAccount(
            serial=self._serial,
            request_id=begun.request_id,
            replica=begun.replica,
            context=begun.context,
            begun_monotonic_ns=begun.begun_monotonic_ns,
            start_unix_ns=begun.start_unix_ns,
        )
        self._accounts[begun.request_id] = account
        return account

    def close(self, account: RequestAccount) -> None:
        """The attempt is settled."""
        del self._accounts[account.request_id]

    def spoil(self, replicas: Sequence[MeteredReplica], reason: str) -> None:
        """Energy of the residents isn't known whole any more: they keep their account, but aren't billed."""
        names = {replica.registration.replica for replica in replicas}
        for account in self._accounts.values():
            if account.replica in names and account.resident_from_ns is not None:
                account.spoiled = account.spoiled or reason

    def take_in(self, events: Sequence[StepEvent], replicas: Mapping[str, MeteredReplica]) -> None:
        """What the engines did; what comes from a replica that isn't metered is nothing."""
        for event in events:
            replica = replicas.get(event.replica)
            if replica is None:
                continue
            match event:
                case StepBegan():
                    self._step_began(replica, event)
                case StepEnded():
                    replica.ended(event)
                    self._step_ended(event)
                case StepsLost():
                    for account in self.on(event.replica):
                        account.steps_lost = True

    def observe(self, replicas: Mapping[str, MeteredReplica]) -> None:
        """Note the power of the residents' devices, and who else is on these."""
        milliwatts = {name: replica.power_milliwatts for name, replica in replicas.items()}
        for account in self._accounts.values():
            replica = replicas.get(account.replica)
            if account.resident_from_ns is not None and replica is not None:
                account.saw_power(milliwatts[account.replica])
                account.shared = account.shared or replica.shared is not None
                account.has_neighbours = account.has_neighbours or replica.has_neighbours

    def _step_began(self, replica: MeteredReplica, event: StepBegan) -> None:
        for work in replica.began(event):
            account = self._accounts.get(work.request_id)
            if account is None or account.replica != event.replica:
                continue
            if account.resident_from_ns is None:
                replica.enter(account, account.saw_first_step(work, event.at_monotonic_ns))
            else:
                account.saw_later_step(work)

    def _step_ended(self, event: StepEnded) -> None:
        for request_id, tokens in event.produced.items():
            account = self._accounts.get(request_id)
            if account is not None and account.replica == event.replica:
                account.output_tokens += tokens
