import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.pins import Pins, region_matches

_segment = st.text("abcdeu2", min_size=1, max_size=3)
_region = st.lists(_segment, min_size=1, max_size=4).map("-".join)


@pytest.mark.parametrize(
    ("wanted", "region", "country", "matches"),
    [
        ("eu-de", "eu-de", "DE", True),
        ("EU-DE", "eu-de", "DE", True),
        ("eu-de", "EU-de", None, True),
        ("eu", "eu-de", "DE", True),
        ("eu-de", "eu-de-2", "DE", True),
        ("eu-d", "eu-de", "DE", False),
        ("eu", "europe", None, False),
        ("eu-", "eu-de", "DE", False),
        ("de", "eu-de", "DE", True),
        ("DE", "eu-central", "de", True),
        ("de", "eu-de", None, False),
        ("de", "eu-fr", "FR", False),
        ("eu-de-2", "eu-de", "DE", False),
        ("", "eu-de", "DE", False),
        ("", "-de", None, False),
    ],
)
def test_a_region_is_itself_a_prefix_or_a_country(wanted, region, country, matches):
    assert region_matches(wanted, region, country) is matches


@given(_region, _region, st.sampled_from([None, "DE", "ab"]))
def test_it_is_what_the_words_say(wanted, region, country):
    assert region_matches(wanted, region, country) == (
        region == wanted or region.startswith(f"{wanted}-") or (country is not None and wanted == country.lower())
    )


@given(st.text(max_size=5), st.text(max_size=5), st.none() | st.text(max_size=2))
def test_case_never_matters(wanted, region, country):
    assert region_matches(wanted.swapcase().casefold(), region, country) == region_matches(
        wanted.swapcase(), region, country
    )


@pytest.mark.parametrize("members", [{"model": ""}, {"region": " "}, {"residency": ("eu", "")}])
def test_an_empty_name_is_refused(members):
    with pytest.raises(ValueError, match=f"a pin's {next(iter(members))} must not be empty"):
        Pins(**members)


def test_no_pins_refuse_nothing():
    assert Pins().refusal(model="m", region="eu-de", country=None, operator="acme") is None


def test_one_entry_of_the_residency_is_enough():
    pins = Pins(residency=("CH", "eu"))
    assert pins.refusal(model="m", region="eu-de", country="DE", operator="acme") is None
    assert pins.refusal(model="m", region="us", country=None, operator="acme") == (
        "is in region us, the account's data must stay in CH or eu"
    )
