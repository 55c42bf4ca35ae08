"""The kernel's powercap tree, laid out in a folder as Linux documents it, with everything that must not be counted."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.counters.counter import difference
from metering.counters.rapl import rapl_counters
from metering.errors import CounterLost, CounterPermissionDenied, CounterUnavailable

RANGE = 262_143_328_850


def _zone(root, directory, name, energy=1_000_000, energy_range=RANGE):
    zone = root / directory
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{energy_range}\n")
    (zone / "enabled").write_text("1\n")
    return zone


@pytest.fixture
def two_sockets(tmp_path):
    """A two-socket server: the class folder lists every zone, nested ones too, next to the control types."""
    (tmp_path / "intel-rapl").mkdir()
    (tmp_path / "intel-rapl-mmio").mkdir()
    (tmp_path / "dtpm").mkdir()
    for socket in (0, 1):
        _zone(tmp_path, f"intel-rapl:{socket}", f"package-{socket}")
        _zone(tmp_path, f"intel-rapl:{socket}:0", "core")
        _zone(tmp_path, f"intel-rapl:{socket}:1", "uncore")
        _zone(tmp_path, f"intel-rapl:{socket}:2", "dram", energy_range=65_712_999_613)
    _zone(tmp_path, "intel-rapl:2", "psys")
    _zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    return tmp_path


def _clock():
    return 1_000


def _by_device(counters):
    return {counter.facts.device_id: counter for counter in counters}


def test_packages_and_dram_are_counted_and_nothing_twice(two_sockets):
    counters = _by_device(rapl_counters(two_sockets, monotonic_ns=_clock))
    assert sorted(counters) == ["cpu-package-0", "cpu-package-1", "dram-0", "dram-1"]
    assert counters["cpu-package-1"].facts.scope == "cpu-package"
    assert counters["dram-1"].facts.scope == "dram"
    assert counters["dram-1"].facts.wrap_microjoules == 65_712_999_613


def test_the_zone_of_the_processor_is_read_and_not_its_memory_mapped_double(two_sockets):
    (two_sockets / "intel-rapl:0/energy_uj").write_text("777\n")
    counters = _by_device(rapl_counters(two_sockets, monotonic_ns=_clock))
    assert counters["cpu-package-0"].read().energy_microjoules == 777


def test_dies_of_one_package_are_counted_each_with_their_memory(tmp_path):
    for zone in (0, 1):
        _zone(tmp_path, f"intel-rapl:{zone}", f"package-0-die-{zone}", energy=zone)
        _zone(tmp_path, f"intel-rapl:{zone}:0", "dram", energy=10 + zone)
    counters = _by_device(rapl_counters(tmp_path, monotonic_ns=_clock))
    assert {device_id: counter.read().energy_microjoules for device_id, counter in counters.items()} == {
        "cpu-package-0-die-0": 0,
        "cpu-package-0-die-1": 1,
        "dram-0-die-0": 10,
        "dram-0-die-1": 11,
    }


def test_zones_are_told_apart_by_name_and_not_by_number(tmp_path):
    """Linux numbers zones as they are found: a twelve-socket machine, and the platform's zone among the packages."""
    for number in range(12):
        _zone(tmp_path, f"intel-rapl:{number}", f"package-{11 - number}", energy=11 - number)
    _zone(tmp_path, "intel-rapl:12", "psys", energy=99)
    counters = _by_device(rapl_counters(tmp_path, monotonic_ns=_clock))
    assert {device_id: counter.read().energy_microjoules for device_id, counter in counters.items()} == {
        f"cpu-package-{package}": package for package in range(12)
    }


def test_the_links_of_the_real_class_folder_are_followed(two_sockets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    for zone in two_sockets.iterdir():
        (folder / zone.name).symlink_to(zone)
    linked, direct = (rapl_counters(root, monotonic_ns=_clock) for root in (folder, two_sockets))
    assert [counter.facts for counter in linked] == [counter.facts for counter in direct]


def test_a_machine_with_only_the_memory_mapped_zones_is_counted(tmp_path):
    _zone(tmp_path, "intel-rapl-mmio:0", "package-0", energy=5)
    _zone(tmp_path, "intel-rapl-mmio:0:0", "dram", energy=6)
    counters = _by_device(rapl_counters(tmp_path, monotonic_ns=_clock))
    assert {device_id: counter.read().energy_microjoules for device_id, counter in counters.items()} == {
        "cpu-package-0": 5,
        "dram-0": 6,
    }


def test_what_is_known_of_each_zone(two_sockets):
    counters = _by_device(rapl_counters(two_sockets, monotonic_ns=_clock))
    package, dram = counters["cpu-package-0"].facts, counters["dram-0"].facts
    assert (package.maximum_power_milliwatts, dram.maximum_power_milliwatts) == (1_000_000, 300_000)
    assert package.wrap_microjoules == RANGE
    for facts in (package, dram):
        assert (facts.method, facts.best_confidence) == ("rapl", "measured-apportioned")
        assert facts.period_ns == 1_000_000
        assert facts.closes_at_will


def test_the_platform_zone_alone_is_no_package(tmp_path):
    _zone(tmp_path, "intel-rapl:0", "psys")
    _zone(tmp_path, "intel-rapl:1:0", "dram")
    with pytest.raises(CounterUnavailable, match="no RAPL package zone"):
        rapl_counters(tmp_path, monotonic_ns=_clock)


@settings(deadline=None)  # it writes files
@given(steps=st.lists(st.integers(0, 90_000_000), min_size=1, max_size=30), start=st.integers(0, RANGE - 1))
def test_many_wraps_read_often_enough_lose_nothing(steps, start):
    """At 900 W, read every 0.1 s, around a range that is passed every few readings."""
    energy_range, texts, now = 240_000_000, {"energy_uj": str(start % 240_000_000)}, [0]
    texts["max_energy_range_uj"] = str(energy_range)
    with tempfile.TemporaryDirectory() as folder:
        _zone(Path(folder), "intel-rapl:0", "package-0")
        (counter,) = rapl_counters(
            Path(folder),
            monotonic_ns=lambda: now[0],
            read_text=lambda path: texts.get(path.name) or path.read_text(),
        )
    counted, before = 0, counter.read()
    for step in steps:
        now[0] += 100_000_000
        texts["energy_uj"] = str((int(texts["energy_uj"]) + step) % energy_range)
        after = counter.read()
        counted += difference(before, after, counter.facts).energy_microjoules
        before = after
    assert counted == sum(steps)


def test_amd_has_no_dram_zone(tmp_path):
    _zone(tmp_path, "intel-rapl:0", "package-0")
    _zone(tmp_path, "intel-rapl:0:0", "core")
    (counter,) = rapl_counters(tmp_path, monotonic_ns=_clock)
    assert counter.facts.device_id == "cpu-package-0"


def test_one_wrap_is_undone(two_sockets):
    now = [0]
    counters = _by_device(rapl_counters(two_sockets, monotonic_ns=lambda: now[0]))
    energy = two_sockets / "intel-rapl:0/energy_uj"
    energy.write_text(f"{RANGE - 5_000_000}\n")
    before = counters["cpu-package-0"].read()
    now[0] = 100_000_000
    energy.write_text("4000000\n")
    delta = difference(before, counters["cpu-package-0"].read(), counters["cpu-package-0"].facts)
    assert delta.energy_microjoules == 9_000_000


def test_a_gap_that_may_hide_a_wrap_is_unknown(two_sockets):
    now = [0]
    counter = _by_device(rapl_counters(two_sockets, monotonic_ns=lambda: now[0]))["cpu-package-0"]
    before = counter.read()
    now[0] = RANGE * 1000 + 1_000_000  # at 1000 W a microjoule takes a nanosecond and the range this long
    delta = difference(before, counter.read(), counter.facts)
    assert delta.energy_microjoules is None
    assert delta.quarantined_microjoules == 0
    assert "long enough to wrap unseen" in delta.lost


def test_a_jump_is_quarantined(two_sockets):
    now = [0]
    counter = _by_device(rapl_counters(two_sockets, monotonic_ns=lambda: now[0]))["cpu-package-0"]
    before = counter.read()
    now[0] = 100_000_000
    (two_sockets / "intel-rapl:0/energy_uj").write_text(f"{1_000_000 + 10**10}\n")
    delta = difference(before, counter.read(), counter.facts)
    assert delta.energy_microjoules is None
    assert delta.quarantined_microjoules == 10**10


@pytest.mark.parametrize("zone", ["intel-rapl:0", "intel-rapl:1:2"])
def test_without_permission_for_any_zone_the_error_says_how_to_grant_it(two_sockets, zone):
    def read_text(path):
        if path.name == "energy_uj" and path.parent.name == zone:
            raise PermissionError(13, "Permission denied", str(path))
        return path.read_text()

    with pytest.raises(CounterPermissionDenied, match=rf"{zone}/energy_uj .*root only.*chgrp.*CAP_DAC_READ_SEARCH"):
        rapl_counters(two_sockets, monotonic_ns=_clock, read_text=read_text)


def test_a_permission_withdrawn_later_is_a_loss(two_sockets):
    may_read = True

    def read_text(path):
        if not may_read:
            raise PermissionError(13, "Permission denied", str(path))
        return path.read_text()

    counter = rapl_counters(two_sockets, monotonic_ns=_clock, read_text=read_text)[0]
    may_read = False
    with pytest.raises(CounterLost, match=r"cpu-package-0.*Permission denied"):
        counter.read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission_on_a_real_file(two_sockets):
    (two_sockets / "intel-rapl:0/energy_uj").chmod(0)
    with pytest.raises(CounterPermissionDenied):
        rapl_counters(two_sockets, monotonic_ns=_clock)


def test_a_machine_without_the_tree_or_without_packages_is_unavailable(tmp_path):
    with pytest.raises(CounterUnavailable, match="no powercap tree"):
        rapl_counters(tmp_path / "missing", monotonic_ns=_clock)
    with pytest.raises(CounterUnavailable, match="no RAPL package zone"):
        rapl_counters(tmp_path, monotonic_ns=_clock)


@pytest.mark.parametrize("content", ["", "NaN\n", "0x12\n"])
def test_a_zone_that_holds_no_number_is_unavailable(two_sockets, content):
    (two_sockets / "intel-rapl:0/energy_uj").write_text(content)
    with pytest.raises(CounterUnavailable, match=r"intel-rapl:0"):
        rapl_counters(two_sockets, monotonic_ns=_clock)


def test_a_zone_that_vanishes_is_lost_and_not_zero(two_sockets):
    counter = _by_device(rapl_counters(two_sockets, monotonic_ns=_clock))["cpu-package-0"]
    (two_sockets / "intel-rapl:0/energy_uj").unlink()
    with pytest.raises(CounterLost, match="cpu-package-0"):
        counter.read()
