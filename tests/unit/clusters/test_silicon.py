"""The catalogue: every figure has a source, and a machine's own words find the right one."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from clusters.silicon import Catalogue, DetectedCpu, detect_cpu


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.load()


@pytest.fixture(scope="module")
def document():
    return tomllib.loads((files("clusters") / "silicon_catalogue.toml").read_text(encoding="utf-8"))


def _cpu(model, vendor="amd", family=None, number=None):
    return DetectedCpu(vendor=vendor, model=model, family_number=family, model_number=number, threads=2, packages=(0,))


def test_every_entry_is_whole_and_named_once(document):
    for kind in ("cpu", "gpu"):
        names = [entry["name"] for entry in document[kind]]
        assert len(names) == len(set(names))
        assert all(entry["source"] for entry in document[kind])
    for entry in document["cpu"]:
        assert 0.5 < entry["tdp_watts"] / entry["threads"] < 10, entry["name"]


def test_a_family_stands_for_the_median_of_its_large_parts(document):
    parts = {entry["name"]: entry for entry in document["cpu"]}

    def watts_per_thread(name):
        return parts[name]["tdp_watts"] / parts[name]["threads"]

    for family in document["cpu_family"]:
        named = family["median_of"]
        assert family["stands_for"] in named, family["name"]
        ordered = sorted(watts_per_thread(name) for name in named)
        assert watts_per_thread(family["stands_for"]) == ordered[(len(ordered) - 1) // 2], family["name"]
        if "family" in family:
            threads = [parts[name]["threads"] for name in named]
            assert 2 * min(threads) >= max(threads), family["name"]


def test_no_family_hides_a_later_one(document):
    families = document["cpu_family"]
    numbered = [(family["vendor"], family["family"], *family["models"]) for family in families if "family" in family]
    assert ["family" in family for family in families] == [True] * len(numbered) + [False] * (
        len(families) - len(numbered)
    )
    for index, (vendor, number, first, last) in enumerate(numbered):
        for other_vendor, other_number, other_first, other_last in numbered[index + 1 :]:
            if (vendor, number) == (other_vendor, other_number):
                assert last < other_first or other_last < first


@pytest.mark.parametrize(
    ("model", "vendor", "milliwatts", "threads"),
    [
        ("AMD EPYC 9654 96-Core Processor", "amd", 360_000, 192),
        ("AMD EPYC 7763 64-Core Processor", "amd", 280_000, 128),
        ("AMD EPYC 7502P 32-Core Processor", "amd", 180_000, 64),
        ("AMD Ryzen 9 7950X 16-Core Processor", "amd", 170_000, 32),
        ("AMD Ryzen 7 8845HS w/ Radeon 780M Graphics", "amd", 45_000, 16),
        ("Intel(R) Xeon(R) Platinum 8480+", "intel", 350_000, 112),
        ("Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz", "intel", 150_000, 40),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", "intel", 120_000, 28),
        ("12th Gen Intel(R) Core(TM) i9-12900K", "intel", 125_000, 24),
    ],
)
def test_a_part_is_found_by_the_name_that_the_kernel_shows(catalogue, model, vendor, milliwatts, threads):
    power = catalogue.thread_power(_cpu(model, vendor))
    assert (power.tdp_milliwatts, power.threads) == (milliwatts, threads)
    assert power.source


@pytest.mark.parametrize(
    ("cpu", "stands_for"),
    [
        (_cpu("AMD EPYC", family=26, number=2), "AMD EPYC 9655"),
        (_cpu("AMD EPYC", family=26, number=17), "AMD EPYC 9965"),
        (_cpu("AMD EPYC 9R14", family=25, number=17), "AMD EPYC 9534"),
        (_cpu("AMD EPYC", family=25, number=160), "AMD EPYC 9754"),
        (_cpu("AMD EPYC 4244P 6-Core Processor", family=25, number=97), "AMD EPYC 4344P"),
        (_cpu("AMD EPYC 7B13", family=25, number=1), "AMD EPYC 7763"),
        (_cpu("AMD EPYC-Rome Processor", family=23, number=49), "AMD EPYC 7H12"),
        (_cpu("AMD EPYC"), "AMD EPYC 7763"),
        (_cpu("Intel(R) Xeon(R) Processor", "intel", 6, 173), "Intel Xeon 6952P"),
        (_cpu("Intel(R) Xeon(R) Processor", "intel", 6, 175), "Intel Xeon 6780E"),
        (_cpu("Intel(R) Xeon(R) Platinum 8488C", "intel", 6, 143), "Intel Xeon Gold 6448Y"),
        (_cpu("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "intel", 6, 106), "Intel Xeon Gold 6330"),
        (_cpu("Intel(R) Xeon(R) CPU @ 2.30GHz", "intel", 6, 63), "Intel Xeon E5-2680 v3"),
        (_cpu("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel", 6, 79), "Intel Xeon E5-2680 v4"),
        (_cpu("Intel Xeon Processor (Skylake, IBRS)", "intel", 6, 85), "Intel Xeon Platinum 8280"),
        (_cpu("Intel(R) Xeon(R) Processor", "intel"), "Intel Xeon Gold 6448Y"),
    ],
)
def test_a_masked_name_is_taken_for_its_family_and_says_so(catalogue, cpu, stands_for):
    assert catalogue.thread_power(cpu).matched.endswith(f", taken as {stands_for}")


@pytest.mark.parametrize(
    "cpu", [_cpu("unknown", "unknown"), _cpu("AMD Ryzen 9 1234Z", family=26, number=68), _cpu("EPYC", "intel")]
)
def test_what_is_not_listed_has_no_answer(catalogue, cpu):
    assert catalogue.thread_power(cpu) is None


def test_a_gpu_is_found_by_its_nvml_name(catalogue):
    assert catalogue.gpu("NVIDIA H100 80GB HBM3").tdp_milliwatts == 700_000
    assert catalogue.gpu("NVIDIA H100 PCIe").tdp_milliwatts == 350_000
    assert catalogue.gpu("NVIDIA H1000") is None


def test_a_virtual_machine_is_read_as_it_is(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n"
        "model name\t: AMD EPYC\nphysical id\t: 0\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\nphysical id\t: 1\n"
    )
    cpu = detect_cpu(tmp_path)
    assert (cpu.vendor, cpu.model, cpu.family_number, cpu.model_number) == ("amd", "AMD EPYC", 26, 2)
    assert (cpu.threads, cpu.packages) == (2, (0, 1))


def test_a_processor_that_says_nothing_is_unknown(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    cpu = detect_cpu(tmp_path)
    assert (cpu.vendor, cpu.model, cpu.family_number) == ("unknown", "unknown", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[cpu]]\nname = "x"\ntdp_watts = 5\nthreads = 2\n', "source"),
        ('[[cpu]]\nname = "x"\ntdp_watts = 5\nthreads = 0\nsource = "s"\n', "no threads"),
        ('[[gpu]]\nname = "x"\ntdp_watts = 0\nsource = "s"\n', "no power"),
        ('[[gpu]]\nname = "x"\ntdp_watts = 5\nsource = ""\n', "no source"),
        (
            '[[cpu_family]]\nname = "f"\nvendor = "amd"\nname_contains = "X"\nstands_for = "y"\n',
            "stands for 'y'",
        ),
        ("[[cpu]", "(?i)expected"),
    ],
)
def test_a_wrong_catalogue_names_the_entry(tmp_path, text, message):
    path: Path = tmp_path / "catalogue.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Catalogue.load(path)
