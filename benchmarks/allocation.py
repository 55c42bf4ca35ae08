"""How far the split of energy between requests is off: `jc calibrate` on a mesh with the real engine.

Costs are fitted to some shapes of load and predict others, mixtures among them; the error is the mean absolute
percentage over those.
"""

import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.running_mesh import running_mesh
from mesh.calibrate import run_calibration
from mesh.settings import load_settings

_PORT = 18474
_COLUMNS = 120


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_mesh(Path(folder), _PORT):
        settings = load_settings(None, port=_PORT, data_dir=Path(folder))
        run_calibration(settings, console=Console(width=_COLUMNS, highlight=False, soft_wrap=True))


if __name__ == "__main__":
    main()
