"""Accounts and their identity."""

import pytest

from metering.attribution import GRAINS_PER_MICROJOULE, RequestShare, Shares
from metering.book import Book, BookTotals


def _thirds():
    """One microjoule for three requests, which no one can have whole."""
    third = GRAINS_PER_MICROJOULE // 3
    shares = Shares(requests={serial: RequestShare(active_grains=third) for serial in (1, 2, 3)})
    shares.overhead_grains = GRAINS_PER_MICROJOULE - 3 * third
    return shares


def _book():
    book = Book()
    for serial in (1, 2, 3):
        book.open(serial)
    return book


def test_fractions_add_up_over_intervals_and_stay_with_the_mesh_at_the_end():
    book = _book()
    for _ in range(10):
        book.post(1, _thirds())
    charges = [book.settle(serial, RequestShare(), billed=True, settled_ns=0).total_microjoules for serial in (1, 2, 3)]
    assert charges == [3, 3, 3]
    totals = book.totals()
    assert (totals.request_microjoules, totals.overhead_microjoules) == (9, 1)
    assert totals.sum_microjoules == totals.counted_microjoules == 10


def test_shares_that_do_not_sum_to_the_energy_are_refused_whole():
    book = _book()
    with pytest.raises(ValueError, match="must sum"):
        book.post(2, _thirds())
    assert book.totals() == BookTotals()


def test_an_estimate_is_lent_by_trueup_and_given_back():
    book = _book()
    estimate = RequestShare(active_grains=5 * GRAINS_PER_MICROJOULE)
    charge = book.settle(1, estimate, billed=True, settled_ns=0)
    assert charge.total_microjoules == charge.estimated_microjoules == 5
    assert book.totals().trueup_microjoules == -5
    book.post(7, Shares(requests={1: RequestShare(active_grains=7 * GRAINS_PER_MICROJOULE)}))
    totals = book.totals()
    assert (totals.trueup_microjoules, totals.request_microjoules, totals.counted_microjoules) == (2, 5, 7)
    assert totals.sum_microjoules == totals.counted_microjoules


def test_what_is_not_billed_is_overhead():
    book = _book()
    book.post(9, Shares(requests={1: RequestShare(active_grains=9 * GRAINS_PER_MICROJOULE)}))
    assert book.totals().open_microjoules == 9
    assert book.settle(1, RequestShare(), billed=False, settled_ns=0).total_microjoules == 9
    totals = book.totals()
    assert (totals.request_microjoules, totals.overhead_microjoules, totals.open_microjoules) == (0, 9, 0)


def test_a_new_book_goes_on_from_the_totals_of_the_old():
    old = _book()
    old.post(9, Shares(requests={1: RequestShare(active_grains=9 * GRAINS_PER_MICROJOULE)}))
    old.quarantine(100)
    new = Book(old.totals())
    totals = new.totals()
    assert totals.overhead_microjoules == 9
    assert totals.quarantine_microjoules == 100
    assert totals.sum_microjoules == totals.counted_microjoules == 109
