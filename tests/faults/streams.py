"""`python -m flaxlm`, whose standard streams nobody reads, or are on a full disk.

    streams.py closed|full STREAMS ARGUMENTS…

STREAMS are their numbers: 1, 2 or 12.
"""

import os
import sys

if __name__ == "__main__":
    reader, broken = os.pipe()
    os.close(reader)
    if sys.argv[1] == "full":
        broken = os.open("/dev/full", os.O_WRONLY)
    for number in map(int, sys.argv[2]):  # opened again, as at the start of a process
        os.dup2(broken, number)
        stream = open(number, "w", 1, closefd=False)  # noqa: SIM115
        setattr(sys, ("stdout", "stderr")[number - 1], stream)
    sys.argv = ["flaxlm", *sys.argv[3:]]
    from flaxlm.__main__ import main

    sys.exit(main())
