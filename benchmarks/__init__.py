"""Speed, measured and never asserted. `make bench` runs all of it; `python -m benchmarks NAME` one suite."""
