"""`python -m benchmarks [SUITE] …`; none named runs all of them, an unknown name lists them."""

import importlib
import signal
import sys

from benchmarks.machine import describe

_SUITES = (
    "setup",
    "overhead",
    "overload",
    "serving",
    "resume",
    "signing",
    "ledger",
    "metering",
    "energy",
    "allocation",
    "verify",
    "export",
    "placement",
    "tiers",
)


def main() -> None:
    chosen = sys.argv[1:] or list(_SUITES)
    unknown = [name for name in chosen if name not in _SUITES]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}; there are: {', '.join(_SUITES)}")
    # So that a mesh under test is stopped also when the benchmark is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(describe())
    for name in chosen:
        print(f"\n## {name}\n", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
