"""A short run of the rounds of killing; `make faults` does two hundred."""

from kill_report import report
from killing_rounds import EVERY_ACCOUNT, KillingRounds
from rich.console import Console
from running_echo import running_echo_mesh
from soundness import LedgerAccess

_ROUNDS = 5
# Its first round kills the ingress, so that the leases of the holds which that leaves are over by the end.
_SEED = 99


def test_whatever_is_killed_nothing_is_lost_doubled_or_wrong(tmp_path):
    data_dir = tmp_path / "data"
    with running_echo_mesh(data_dir, accounts=EVERY_ACCOUNT, record_nonces=True) as mesh:
        rounds = KillingRounds(mesh, tmp_path, seed=_SEED, ledger=LedgerAccess.of_folder(data_dir))
        run = rounds.run(_ROUNDS, check_every=_ROUNDS)
    Console(width=140).print(report(run))
    assert run.verdict.is_clean, dict(run.verdict.findings)
    assert run.rounds_done == _ROUNDS
    assert all(run.kills.values())
    assert any(exchange.outcome == "answered" for exchange in run.exchanges)
