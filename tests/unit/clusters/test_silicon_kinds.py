import pytest

from clusters.silicon_kinds import SiliconKind, SiliconMismatch, check_silicon

_EPYC = SiliconKind(kind="epyc", detected_as="AMD EPYC*", simulated=False)
_H100 = SiliconKind(kind="h100", detected_as="NVIDIA H100*", simulated=True)


@pytest.mark.parametrize("detected", ["AMD EPYC 9655 96-Core Processor", "amd epyc", "AMD EPYC"])
def test_silicon_is_known_by_its_pattern_in_any_case(detected):
    check_silicon(_EPYC, detected)
    assert _EPYC.matches(detected)


@pytest.mark.parametrize("detected", ["Intel Xeon", "", "unknown", "An AMD EPYC"])
def test_other_silicon_is_refused_with_both_names(detected):
    with pytest.raises(SiliconMismatch, match=rf"'{detected}'.*'epyc' must be detected as 'AMD EPYC\*'"):
        check_silicon(_EPYC, detected)


def test_simulated_silicon_may_be_anywhere():
    check_silicon(_H100, "Intel Xeon")


def test_a_pool_that_names_no_silicon_runs_on_any():
    check_silicon(None, "Intel Xeon")
