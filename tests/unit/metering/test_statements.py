"""The meter's signed statements: one spelling each, one key, one chain; and the key's file."""

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.errors import MeterKeyUnusable, StatementInvalid
from metering.statements import (
    ChainHead,
    MeterKey,
    MeterStatement,
    SignedStatement,
    StatementChain,
    check_statement,
    read_statement,
)

SEED = bytes(range(32))


@pytest.fixture(scope="module")
def key() -> MeterKey:
    return MeterKey(SEED)


def stated(chain: StatementChain, number: int = 1, **changes: Any) -> SignedStatement:
    figures: dict[str, Any] = {
        "request_id": f"{number:032x}",
        "outcome": "finished",
        "microjoules": 310_000,
        "counted_microjoules": 1_000_000,
        "open_ns": 90_000_000,
    }
    return chain.state(**{**figures, **changes})


def signed_by(key: MeterKey, text: str) -> SignedStatement:
    return SignedStatement(statement=text, signature=key.sign(text.encode("utf-8", "replace")).hex())


def canonical(document: object) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


class TestStatement:
    def test_the_signed_bytes_are_these(self, key: MeterKey) -> None:
        signed = stated(StatementChain(key, None))
        assert signed.statement == (
            '{"charged_microjoules":310000,"counted_microjoules":1000000,'
            '"meter":"03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",'
            '"microjoules":310000,"open_ns":90000000,"outcome":"finished","previous_sha256":null,'
            '"request_id":"00000000000000000000000000000001","sequence":1,"typ":"joule-mesh.meter-statement/v1"}'
        )

    def test_another_library_verifies_it(self, key: MeterKey) -> None:
        signed = stated(StatementChain(key, None))
        public_key = Ed25519PublicKey.from_public_bytes(key.public_key)
        public_key.verify(bytes.fromhex(signed.signature), signed.statement.encode("ascii"))

    def test_what_was_stated_is_what_is_read(self, key: MeterKey) -> None:
        signed = stated(StatementChain(key, None), microjoules=None, outcome="aborted")
        statement = check_statement(signed, key.public_key)
        assert statement == MeterStatement(
            meter=key.public_key.hex(),
            sequence=1,
            previous_sha256=None,
            request_id=f"{1:032x}",
            outcome="aborted",
            microjoules=None,
            charged_microjoules=0,
            counted_microjoules=1_000_000,
            open_ns=90_000_000,
        )
        assert statement.signed_bytes() == signed.statement.encode()
        assert read_statement(signed) == statement

    @settings(max_examples=50, deadline=None)
    @given(
        request_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128),
        microjoules=st.none() | st.integers(0, 2**40),
        counted=st.integers(0, 2**62),
        open_ns=st.integers(0, 2**62),
    )
    def test_whatever_is_stated_can_be_read(
        self, key: MeterKey, request_id: str, microjoules: int | None, counted: int, open_ns: int
    ) -> None:
        chain = StatementChain(key, None)
        signed = stated(
            chain, request_id=request_id, microjoules=microjoules, counted_microjoules=counted, open_ns=open_ns
        )
        statement = check_statement(signed, key.public_key)
        assert (statement.request_id, statement.microjoules) == (request_id, microjoules)
        assert (statement.counted_microjoules, statement.open_ns) == (counted, open_ns)

    @pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(MeterStatement)])
    def test_a_changed_member_is_noticed(self, key: MeterKey, field: str) -> None:
        chain = StatementChain(key, None)
        stated(chain)
        signed = stated(chain, 2)
        document = json.loads(signed.statement)
        document[field] = document[field] + 1 if isinstance(document[field], int) else "0" * len(document[field])
        with pytest.raises(StatementInvalid, match="not signed by the meter 03a107bff3ce10be"):
            check_statement(dataclasses.replace(signed, statement=canonical(document)), key.public_key)

    @pytest.mark.parametrize("signature", ["", "00", "zz" * 64, "00" * 64, "00" * 63, " " * 128])
    def test_a_wrong_signature_is_noticed(self, key: MeterKey, signature: str) -> None:
        signed = dataclasses.replace(stated(StatementChain(key, None)), signature=signature)
        with pytest.raises(StatementInvalid, match="not signed"):
            check_statement(signed, key.public_key)

    def test_a_signature_has_one_spelling(self, key: MeterKey) -> None:
        signed = stated(StatementChain(key, None))
        for spelling in (signed.signature.upper(), " " + signed.signature):
            with pytest.raises(StatementInvalid, match="not signed"):
                check_statement(dataclasses.replace(signed, signature=spelling), key.public_key)

    def test_another_key_is_not_the_meters(self, key: MeterKey) -> None:
        signed = stated(StatementChain(key, None))
        for public_key in (MeterKey(bytes(32)).public_key, bytes(32), b"", key.public_key[:31]):
            with pytest.raises(StatementInvalid, match="not signed"):
                check_statement(signed, public_key)

    def test_a_statement_in_anothers_name_is_refused(self, key: MeterKey) -> None:
        text = stated(StatementChain(MeterKey(bytes(32)), None)).statement
        with pytest.raises(StatementInvalid, match="it names the meter 3b6a27bcceb6a42d"):
            check_statement(signed_by(key, text), key.public_key)

    @pytest.mark.parametrize("length", [0, 1, 100, -1])
    def test_a_truncated_one_is_refused_even_when_signed(self, key: MeterKey, length: int) -> None:
        text = stated(StatementChain(key, None)).statement[:length]
        with pytest.raises(StatementInvalid, match="not a meter's statement"):
            check_statement(signed_by(key, text), key.public_key)

    @pytest.mark.parametrize(
        "text", ["null", "[]", "1", '"typ"', "{}", "[" * 2000, "\ud800", '{"typ":1e999}', "9" * 2000, "x" * 2049]
    )
    def test_what_is_no_statement_is_refused_even_when_signed(self, key: MeterKey, text: str) -> None:
        for check in (lambda signed: check_statement(signed, key.public_key), read_statement):
            with pytest.raises(StatementInvalid):
                check(signed_by(key, text))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"typ": "joule-mesh.meter-statement/v2"}, "of the type"),
            ({"typ": 1}, "of the type"),
            ({"note": "more"}, "not a meter's statement"),
            ({"sequence": 0}, "only the first statement"),
            ({"sequence": 2}, "only the first statement"),
            ({"previous_sha256": "ab" * 32}, "only the first statement"),
            ({"previous_sha256": "AB" * 32, "sequence": 2}, "previous_sha256"),
            ({"previous_sha256": 1, "sequence": 2}, "previous_sha256"),
            ({"sequence": 1.0}, "sequence"),
            ({"sequence": True}, "sequence"),
            ({"sequence": None}, "sequence"),
            ({"sequence": 2**63, "previous_sha256": "ab" * 32}, "sequence"),
            ({"microjoules": -1}, "microjoules"),
            ({"microjoules": "310000"}, "microjoules"),
            ({"microjoules": 310_001}, "more for the request than for all"),
            ({"charged_microjoules": -1}, "charged_microjoules"),
            ({"counted_microjoules": None}, "counted_microjoules"),
            ({"open_ns": -1}, "open_ns"),
            ({"request_id": ""}, "request_id"),
            ({"request_id": "x" * 129}, "request_id"),
            ({"request_id": None}, "request_id"),
            ({"outcome": []}, "outcome"),
            ({"meter": "03A107BF" + "0" * 56}, "public key"),
            ({"meter": None}, "public key"),
        ],
    )
    def test_a_malformed_one_is_refused_even_when_signed(
        self, key: MeterKey, changes: dict[str, Any], says: str
    ) -> None:
        document = {**json.loads(stated(StatementChain(key, None)).statement), **changes}
        with pytest.raises(StatementInvalid, match=says):
            check_statement(signed_by(key, canonical(document)), key.public_key)

    @pytest.mark.parametrize("name", json.loads(stated(StatementChain(MeterKey(SEED), None)).statement))
    def test_one_that_lacks_a_member_is_refused_even_when_signed(self, key: MeterKey, name: str) -> None:
        document = json.loads(stated(StatementChain(key, None)).statement)
        del document[name]
        with pytest.raises(StatementInvalid, match="not a meter's statement"):
            check_statement(signed_by(key, canonical(document)), key.public_key)

    def test_a_statement_has_one_spelling(self, key: MeterKey) -> None:
        text = stated(StatementChain(key, None)).statement
        document = json.loads(text)
        for spelling in (
            json.dumps(document, sort_keys=True),
            json.dumps(document, separators=(",", ":")),
            text + "\n",
            text.replace('"open_ns":', '"open_ns":1,"open_ns":'),
            text.replace('"finished"', '"\\u0066inished"'),
        ):
            assert json.loads(spelling)["open_ns"] == 90_000_000
            if spelling != text:
                with pytest.raises(StatementInvalid, match="canonical"):
                    check_statement(signed_by(key, spelling), key.public_key)


class TestChain:
    def test_each_statement_names_the_one_before(self, key: MeterKey) -> None:
        chain = StatementChain(key, None)
        assert chain.head is None
        signed = [stated(chain, n, microjoules=each) for n, each in enumerate([5, None, 0, 7], start=1)]
        statements = [check_statement(each, key.public_key) for each in signed]
        assert [each.sequence for each in statements] == [1, 2, 3, 4]
        assert [each.charged_microjoules for each in statements] == [5, 5, 5, 12]
        digests = [hashlib.sha256(each.statement.encode()).hexdigest() for each in signed]
        assert [each.previous_sha256 for each in statements] == [None, *digests[:-1]]
        assert [each.sha256 for each in statements] == digests
        assert chain.head == ChainHead(sequence=4, sha256=digests[-1], charged_microjoules=12)

    def test_a_restart_makes_no_difference(self, key: MeterKey) -> None:
        whole, first = StatementChain(key, None), StatementChain(key, None)
        expected = [stated(whole, n) for n in range(1, 5)]
        made = [stated(first, n) for n in (1, 2)]
        second = StatementChain(MeterKey(SEED), first.head)
        assert made + [stated(second, n) for n in (3, 4)] == expected
        assert second.head == whole.head

    def test_after_a_loss_no_number_comes_twice_and_nothing_that_was_billed_is_forgotten(self, key: MeterKey) -> None:
        before = StatementChain(key, None)
        stated(before)
        known = before.head
        assert known is not None
        lost = [check_statement(stated(before, n), key.public_key).sequence for n in range(2, 1000)]
        after = StatementChain(key, known.after_a_loss())
        statement = check_statement(stated(after, 2000), key.public_key)
        assert statement.sequence > max(lost)
        assert statement.previous_sha256 == known.sha256
        assert statement.charged_microjoules == 2 * 310_000


class TestKey:
    def test_a_key_is_made_once_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "meter" / "key"
        made = MeterKey.load_or_create(path, os.urandom)
        again = MeterKey.load_or_create(path, lambda _: pytest.fail("no second key is made"))
        assert made.public_key == again.public_key
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [each.name for each in path.parent.iterdir()] == ["key"]

    def test_a_key_that_another_has_made_meanwhile_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        theirs: list[MeterKey] = []

        def slow_random(size: int) -> bytes:
            theirs.append(MeterKey.load_or_create(path, os.urandom))
            return os.urandom(size)

        assert MeterKey.load_or_create(path, slow_random).public_key == theirs[0].public_key
        assert [each.name for each in tmp_path.iterdir()] == ["key"]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
    def test_a_key_that_others_may_use_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "key"
        MeterKey.load_or_create(path, os.urandom)
        path.chmod(mode)
        with pytest.raises(MeterKeyUnusable, match=f"chmod 600 {path}"):
            MeterKey.load_or_create(path, os.urandom)

    def test_a_damaged_key_is_refused_and_not_shown(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        MeterKey.load_or_create(path, lambda _: SEED)
        whole = path.read_bytes()
        flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(len(whole))]
        for content in (b"", b"\xff" * 200, whole[:-1], whole + b"\n", whole[: len(whole) // 2], *flipped):
            path.write_bytes(content)
            with pytest.raises(MeterKeyUnusable, match="is damaged") as refused:
                MeterKey.load_or_create(path, os.urandom)
            assert SEED.hex()[4:36] not in str(refused.value)
            assert refused.value.__context__ is None  # a ValueError would quote a part of it
            assert path.read_bytes() == content

    def test_a_key_that_cannot_be_read_or_made_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "file" / "key"):
            with pytest.raises(MeterKeyUnusable, match="cannot be read or made"):
                MeterKey.load_or_create(path, os.urandom)

    def test_it_shows_nothing_and_stays_where_it_is(self, key: MeterKey) -> None:
        assert repr(key) == "<MeterKey 03a107bff3ce10be, secret redacted>"
        for shown in (repr(key), str(key), f"{StatementChain(key, None)!r}"):
            assert SEED.hex()[:16] not in shown
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(key)
        with pytest.raises(TypeError, match="never pickled"):
            copy.deepcopy(key)
