"""How many holds the running mesh's ledger still has, and of how much: `python holds_left.py DATA_DIR` prints JSON."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from mesh.ray_session import join_ray
from mesh.run_state import DataFolder


def main() -> None:
    data_dir = Path(sys.argv[1])
    state = DataFolder(data_dir).running()
    join_ray(state, data_dir)
    import ray

    from receipts.ledger_actor import ledger_of

    print(json.dumps(asdict(ray.get(ledger_of(state.namespace).holds_report.remote(), timeout=30))))


if __name__ == "__main__":
    main()
