"""A short run of the faults in the middle of answers; `make failover` does three hundred."""

import pytest
from failing_over import EVERY_ACCOUNT, FAULTS, FailoverRounds
from failover_report import failover_report
from rich.console import Console
from running_echo import running_echo_mesh
from three_sites import write_three_sites

_OF_EACH = 5
_SEED = 7


def test_whatever_fails_in_the_middle_the_client_gets_the_whole_right_answer(tmp_path):
    sites = write_three_sites(tmp_path)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JC_CONFIG", str(sites.config))
        with running_echo_mesh(tmp_path / "data", accounts=EVERY_ACCOUNT, nodes=sites.nodes) as mesh:
            run = FailoverRounds(mesh, sites, tmp_path, seed=_SEED).run(_OF_EACH)
    Console(width=140).print(failover_report(run))
    assert run.verdict.is_clean, dict(run.verdict.findings)
    assert len(run.struck) == _OF_EACH * len(FAULTS)
    for fault in FAULTS:
        assert sum(each.retries > 0 for each in run.struck if each.round.fault == fault) >= 2, f"{fault} met no attempt"
