from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.pins import Pins
from serve.errors import RequestRefused
from serve.request_pins import RequestPins


def test_an_account_without_pins_has_only_the_headers():
    assert RequestPins({}).of("acme", []) == Pins()
    assert RequestPins({}).of("acme", ["eu-de"]) == Pins(region="eu-de")


def test_an_accounts_own_pins_go_with_every_request_of_its_and_nobody_elses():
    own = Pins(residency=("eu",), operators=frozenset({"nordic"}))
    pins = RequestPins({"acme": own})
    assert pins.of("acme", ["FI"]) == Pins(region="FI", residency=("eu",), operators=frozenset({"nordic"}))
    assert pins.of("other", []) == Pins()


@pytest.mark.parametrize("region", ["", " ", "eu de", "eu/de", "é", "-", "---", "a" * 65, "eu\n", "eu-de, eu-fi"])
def test_what_is_no_region_is_refused_by_the_headers_name(region: str):
    with pytest.raises(RequestRefused, match="X-Region") as refused:
        RequestPins({}).of("acme", [region])
    assert refused.value.status is HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("second", ["eu-de", "us"])
def test_two_headers_are_refused_for_one_of_them_would_not_be_kept(second: str):
    with pytest.raises(RequestRefused, match="2 times") as refused:
        RequestPins({}).of("acme", ["eu-de", second])
    assert refused.value.status is HTTPStatus.BAD_REQUEST


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_any_other_name_is_a_region(region: str):
    assert RequestPins({}).of("acme", [region]).region == region
