"""Time of each set-up step, from empty caches and from warm ones: install, Ray, signers, meter, engine."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

_ROOT = Path(__file__).parents[1]
_STEP = re.compile(r"^✓\s+([\d.]+) s (.+)$", re.MULTILINE)
_PORT = 18473


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install = {state: _install(folder) for state in ("empty", "warm")}
        demo = {state: _demo(folder) for state in ("empty", "warm")}
    print(f"{'step':<28}{'empty caches':>14}{'warm':>10}")
    _row("install from the lock", install["empty"], install["warm"])
    for step in demo["empty"]:
        _row(step, demo["empty"][step], demo["warm"][step])


def _row(step: str, empty_s: float, warm_s: float) -> None:
    print(f"{step:<28}{empty_s:>12.1f} s{warm_s:>8.1f} s")


def _install(folder: Path) -> float:
    """A new virtual environment each time; the second finds the packages in uv's cache."""
    venv = folder / "venv"
    environment = {**os.environ, "UV_CACHE_DIR": str(folder / "uv-cache")}
    began = time.perf_counter()
    command = ["make", f"VENV={venv}", f"PYTHON={Path(sys.base_prefix) / 'bin' / 'python3.11'}", "install"]
    subprocess.run(command, cwd=_ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    elapsed = time.perf_counter() - began
    subprocess.run(["rm", "-rf", str(venv)], check=True)
    return elapsed


def _demo(folder: Path) -> dict[str, float]:
    """One `jc demo`; the first converts the weights and makes the signers' key."""
    settings = yaml.safe_load((_ROOT / "clusters" / "local.yaml").read_text())
    settings["mesh"].update(port=_PORT, data_dir=str(folder / "data"), cache_dir=str(folder / "weights"))
    (folder / "mesh.yaml").write_text(yaml.safe_dump(settings))
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "mesh.command", "demo", "--config", str(folder / "mesh.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(f"jc demo failed:\n{ran.stdout}{ran.stderr}")
    steps = {step: float(seconds) for seconds, step in _STEP.findall(ran.stdout)}
    return {**steps, "jc demo, all of it": time.perf_counter() - began}
