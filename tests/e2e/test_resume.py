"""The seam through which another replica takes up an answer: by token ids, never by text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

_PROBE = Path(__file__).parents[1] / "engines" / "resume_probe.py"


@pytest.fixture(scope="module")
def cuts(mesh) -> list[dict]:
    command = [sys.executable, str(_PROBE), str(mesh.data_dir)]
    probed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert probed.returncode == 0, probed.stderr[-3000:]
    found = json.loads(probed.stdout.splitlines()[-1])
    assert len(found) == 30
    assert {cut["shape"] for cut in found} == {"chat/completions", "completions", "messages"}
    return found


def test_a_cut_answer_goes_on_after_the_tokens_already_delivered(cuts):
    """In bfloat16 prefill and decode round differently, so an answer may go another way after the seam; most don't."""
    for cut in cuts:
        delivered = cut["delivered"]
        assert cut["ids"][:delivered] == cut["whole_ids"][:delivered]
        assert len(cut["ids"]) <= 32
        if cut["ids"] == cut["whole_ids"]:
            assert cut["joined"] == cut["whole"]
    same = [cut for cut in cuts if cut["ids"] == cut["whole_ids"]]
    assert len(same) >= len(cuts) / 2


def test_the_client_gets_every_piece_of_it_once(cuts):
    """The replayed answer is complete in itself; what was sent and what came then must be exactly that."""
    for cut in cuts:
        joined = cut["joined"]
        assert joined == cut["replayed"]
        assert joined["text"].startswith(cut["sent"]["text"])
        openings = 0 if cut["shape"] == "completions" else 1
        assert (joined["openings"], len(joined["finishes"]), joined["ends"]) == (openings, 1, 1)
        assert joined["tokens"] == len(cut["ids"])
        assert joined["logprobs"] in (0, len(cut["ids"]))
    assert any(cut["joined"]["logprobs"] for cut in cuts)


def test_the_receipt_counts_what_was_computed_after_the_seam(cuts):
    for cut in cuts:
        assert cut["produced"] == cut["new"] == len(cut["ids"]) - cut["delivered"]
        assert cut["resumed_after_tokens"] == cut["delivered"]
    assert any(cut["new"] == 0 for cut in cuts), "an answer that was whole at the cut is only ended, not computed"
