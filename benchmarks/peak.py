"""Run a command, then say on stderr how much memory it took at its highest: `python -m benchmarks.peak COMMAND…`.

A process of its own, because Linux counts what its starter had in memory towards a process that it starts; this one
has next to nothing.
"""

import resource
import subprocess
import sys

if __name__ == "__main__":
    ended = subprocess.run(sys.argv[1:], check=False)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
    sys.exit(ended.returncode)
