"""The seam through which another replica takes up an answer: by token ids, never by text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

_PROBE = Path(__file__).parents[1] / "engines" / "resume_probe.py"


def test_a_cut_answer_goes_on_after_the_tokens_already_delivered(mesh):
    """In bfloat16 prefill and decode round differently, so an answer may go another way after the seam; most don't.

    What must hold at every seam: the delivered tokens and their text come back unchanged, blank lines and emoji
    included, and the answer ends where it would have.
    """
    command = [sys.executable, str(_PROBE), str(mesh.data_dir)]
    probed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert probed.returncode == 0, probed.stderr[-3000:]
    cuts = json.loads(probed.stdout.splitlines()[-1])
    assert len(cuts) >= 4
    for cut in cuts:
        assert cut["ids"][: cut["cut"]] == cut["whole_ids"][: cut["cut"]]
        assert len(cut["ids"]) <= 32
        if cut["ids"] == cut["whole_ids"]:
            assert cut["text"] == cut["whole_text"]
    same = [cut for cut in cuts if cut["ids"] == cut["whole_ids"]]
    assert len(same) >= len(cuts) / 2
