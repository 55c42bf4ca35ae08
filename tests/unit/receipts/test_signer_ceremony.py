"""Key generation between signers: sealed, signed, once; and whoever cheats is named."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from nacl.signing import SigningKey

from receipts.frost.errors import FrostError
from receipts.frost.keygen import KeyShare
from receipts.group_record import GroupRecord, GroupStatement
from receipts.signer_ceremony import Ceremony, SigningIdentity
from receipts.signer_messages import (
    CeremonyPlan,
    RoundOnePackage,
    SealedShare,
    SignedGroupStatement,
    SignerIdentity,
)
from receipts.signing_errors import SigningError

MEMBERS = range(1, 6)


class Table:
    """Five signers around a table, each step in the test's hands."""

    def __init__(self) -> None:
        self.identities = {each: SigningIdentity(os.urandom(32)) for each in MEMBERS}
        roster = tuple(
            SignerIdentity(identifier=each, identity_key=self.identities[each].public_key) for each in MEMBERS
        )
        self.plan = CeremonyPlan(ceremony_id=os.urandom(32), threshold=3, roster=roster)
        self.ceremonies = {each: self.ceremony(each, self.plan) for each in MEMBERS}

    def ceremony(self, identifier: int, plan: CeremonyPlan) -> Ceremony:
        return Ceremony(plan=plan, identifier=identifier, identity=self.identities[identifier], random_bytes=os.urandom)

    def publish(self) -> tuple[RoundOnePackage, ...]:
        return tuple(self.ceremonies[each].publish() for each in MEMBERS)

    def seal(self, packages: tuple[RoundOnePackage, ...]) -> list[SealedShare]:
        return [share for each in MEMBERS for share in self.ceremonies[each].seal(packages)]

    def conclude(self, sealed: list[SealedShare]) -> dict[int, tuple[KeyShare, SignedGroupStatement]]:
        return {each: self.ceremonies[each].conclude(for_(each, sealed)) for each in MEMBERS}


def for_(recipient: int, sealed: list[SealedShare]) -> tuple[SealedShare, ...]:
    return tuple(each for each in sealed if each.recipient == recipient)


@pytest.fixture
def table() -> Table:
    return Table()


def record_of(concluded: dict[int, tuple[KeyShare, SignedGroupStatement]]) -> GroupRecord:
    return GroupRecord(
        statement=concluded[1][1].statement,
        signatures={each: signed.signature for each, (_, signed) in concluded.items()},
    )


def test_an_honest_ceremony_ends_in_one_statement_that_all_have_signed(table: Table) -> None:
    concluded = table.conclude(table.seal(table.publish()))
    record = record_of(concluded)
    record.verify()
    assert {signed.statement for _, signed in concluded.values()} == {record.statement}
    assert {share.public_key for share, _ in concluded.values()} == {record.public_key}
    assert GroupRecord.from_json(record.to_json()) == record


def test_nothing_that_passes_the_coordinator_contains_a_share(table: Table) -> None:
    packages = table.publish()
    sealed = table.seal(packages)
    concluded = table.conclude(sealed)
    seen = b"".join(each.sealed for each in sealed) + repr(packages).encode() + repr(concluded).encode()
    for share, _ in concluded.values():
        assert share.secret not in seen
        assert share.secret.hex().encode() not in seen
    assert len({each.sealed for each in sealed}) == 20


def tampered_package(change: Callable[[RoundOnePackage], RoundOnePackage]) -> None:
    table = Table()
    packages = list(table.publish())
    packages[3] = change(packages[3])
    with pytest.raises(FrostError) as caught:
        table.ceremonies[1].seal(tuple(packages))
    assert caught.value.culprits == {4}


@pytest.mark.parametrize(
    "change",
    [
        lambda package: replace(package, signature=bytes(64)),
        lambda package: replace(package, box_key=os.urandom(32)),
        lambda package: replace(package, box_key=b""),
        lambda package: replace(package, commitments=package.commitments[:2]),
        lambda package: replace(package, commitments=package.commitments[::-1]),
        lambda package: replace(package, proof=bytes(64)),
    ],
)
def test_a_changed_package_names_its_sender(change: Callable[[RoundOnePackage], RoundOnePackage]) -> None:
    tampered_package(change)


def test_the_coordinator_cannot_slip_in_its_own_box_key(table: Table) -> None:
    """To read a share it would have to be the recipient; the recipient's box key is signed."""
    packages = list(table.publish())
    packages[1] = replace(packages[1], box_key=bytes(SigningKey.generate().to_curve25519_private_key().public_key))
    with pytest.raises(FrostError, match="not signed by it"):
        table.ceremonies[1].seal(tuple(packages))


def test_a_package_of_another_ceremony_is_refused(table: Table) -> None:
    other = table.ceremony(4, replace(table.plan, ceremony_id=os.urandom(32)))
    packages = list(table.publish())
    packages[3] = other.publish()
    with pytest.raises(FrostError, match="not signed by it"):
        table.ceremonies[1].seal(tuple(packages))


def test_a_low_order_box_key_is_refused_even_if_signed(table: Table) -> None:
    packages = list(table.publish())
    forged = replace(packages[3], box_key=bytes(32))
    from receipts.signer_ceremony import _round_one_bytes

    signature = table.identities[4].sign(_round_one_bytes(table.plan, forged))
    packages[3] = replace(forged, signature=signature)
    with pytest.raises(FrostError) as caught:
        table.ceremonies[1].seal(tuple(packages))
    assert caught.value.culprits == {4}


@pytest.mark.parametrize(
    "change",
    [
        lambda packages: packages[:4],
        lambda packages: packages[::-1],
        lambda packages: (*packages[:4], packages[3]),
        lambda packages: (*packages, packages[0]),
    ],
)
def test_the_second_round_needs_each_signer_once(
    table: Table, change: Callable[[tuple[RoundOnePackage, ...]], tuple[RoundOnePackage, ...]]
) -> None:
    with pytest.raises(SigningError, match="one package of each signer"):
        table.ceremonies[1].seal(change(table.publish()))


def test_a_signer_notices_that_its_own_package_was_changed(table: Table) -> None:
    packages = table.publish()
    with pytest.raises(SigningError, match="came back changed"):
        table.ceremonies[1].seal((replace(packages[0], signature=bytes(64)), *packages[1:]))


def test_a_missing_garbled_misdirected_or_replayed_share_names_its_sender(table: Table) -> None:
    packages = table.publish()
    sealed = table.seal(packages)
    good = for_(1, sealed)
    from_two = good[0]
    assert from_two.sender == 2
    to_three_from_two = next(each for each in sealed if (each.sender, each.recipient) == (2, 3))
    # The pair's key is the same both ways: our own share for 2 opens, and must not pass for one from 2.
    reflected = next(each for each in sealed if (each.sender, each.recipient) == (1, 2))
    for bad in [
        None,
        replace(from_two, sealed=b""),
        replace(from_two, sealed=from_two.sealed[:-1]),
        replace(from_two, sealed=bytes(len(from_two.sealed))),
        replace(to_three_from_two, recipient=1),
        replace(reflected, sender=2, recipient=1),
    ]:
        with pytest.raises(FrostError) as caught:
            table.ceremonies[1].conclude((*([] if bad is None else [bad]), *good[1:]))
        assert caught.value.culprits == {2}
    with pytest.raises(FrostError, match="something else than our share"):
        table.ceremonies[1].conclude((replace(reflected, sender=2, recipient=1), *good[1:]))
    table.ceremonies[1].conclude(good)


def test_signers_that_were_shown_different_packages_do_not_agree(table: Table) -> None:
    """A signer that publishes two packages splits the group: the transcripts differ, so no record verifies."""
    packages = table.publish()
    twin = table.ceremony(5, table.plan)
    twins = (*packages[:4], twin.publish())
    shares = {each: table.ceremonies[each].seal(twins if each == 1 else packages) for each in range(1, 5)}
    from_five = {1: twin.seal(twins), **dict.fromkeys(range(2, 5), table.ceremonies[5].seal(packages))}
    statements: dict[int, GroupStatement] = {}
    for recipient in (1, 2):
        sealed = [share for sender in shares for share in shares[sender]] + list(from_five[recipient])
        _, signed = table.ceremonies[recipient].conclude(for_(recipient, sealed))
        statements[recipient] = signed.statement
    assert statements[1] != statements[2]
    assert statements[1].transcript_sha256 != statements[2].transcript_sha256


def test_steps_come_once_and_in_order(table: Table) -> None:
    ceremony = table.ceremonies[1]
    with pytest.raises(SigningError, match="second round"):
        ceremony.seal(())
    with pytest.raises(SigningError, match="third round"):
        ceremony.conclude(())
    packages = table.publish()
    with pytest.raises(SigningError, match="done already"):
        ceremony.publish()
    ceremony.seal(packages)
    with pytest.raises(SigningError, match="second round"):
        ceremony.seal(packages)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, ceremony_id=b"short"),
        lambda plan: replace(plan, threshold=1),
        lambda plan: replace(plan, threshold=6),
        lambda plan: replace(plan, roster=plan.roster[::-1]),
        lambda plan: replace(plan, roster=(plan.roster[0], plan.roster[0], *plan.roster[1:])),
        lambda plan: replace(plan, roster=plan.roster[1:]),
        lambda plan: replace(plan, roster=(replace(plan.roster[0], identity_key=bytes(32)), *plan.roster[1:])),
        lambda plan: replace(
            plan, roster=(*plan.roster[:4], replace(plan.roster[4], identity_key=plan.roster[0].identity_key))
        ),
    ],
)
def test_a_malformed_plan_is_refused(table: Table, change: Callable[[CeremonyPlan], CeremonyPlan]) -> None:
    with pytest.raises(SigningError):
        table.ceremony(1, change(table.plan))


def test_every_field_of_a_record_is_vouched_for(table: Table) -> None:
    record = record_of(table.conclude(table.seal(table.publish())))
    other = record_of((fresh := Table()).conclude(fresh.seal(fresh.publish())))
    statement = record.statement
    stranger = replace(statement.members[0], identity_key=other.statement.members[0].identity_key)
    changed_statements = [
        replace(statement, threshold=2),
        replace(statement, threshold=4),
        replace(statement, transcript_sha256=bytes(32)),
        replace(statement, transcript_sha256=b""),
        replace(statement, public_key=other.public_key),
        replace(statement, members=statement.members[:4]),
        replace(statement, members=statement.members[::-1]),
        replace(statement, members=(stranger, *statement.members[1:])),
        replace(statement, members=other.statement.members),
    ]
    changed_signatures = [
        {**record.signatures, 2: bytes(64)},
        {each: record.signatures[each] for each in (1, 2, 3, 4)},
        {**record.signatures, 6: record.signatures[1]},
    ]
    changed = [replace(record, statement=each) for each in changed_statements]
    changed += [replace(record, signatures=each) for each in changed_signatures]
    for each in changed:
        with pytest.raises(SigningError):
            each.verify()
    record.verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"[]",
        lambda _: b"{}",
        lambda data: data.replace(b'"threshold": 3', b'"threshold": 2'),
        lambda data: data.replace(b'"key_id": "', b'"key_id": "0'),
        lambda data: data.replace(b"  ", b" "),
        lambda data: data.replace(b'"1":', b'"7":'),
        lambda data: data.upper(),
    ],
)
def test_a_changed_record_file_is_refused(table: Table, change: Callable[[bytes], bytes]) -> None:
    data = record_of(table.conclude(table.seal(table.publish()))).to_json()
    with pytest.raises(SigningError):
        GroupRecord.from_json(change(data))
