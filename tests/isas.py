"""`make test-isas`: the fast third of the suite under each instruction set, on one core and two.

Compilers choose the order of sums by the instructions that there are, so what is compared to
rounding is run with every set that XLA can be held to. What is chosen takes little time and
compares numbers, of every room.
"""

import os
import pathlib
import platform
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# XLA's names, and what the kernel calls the instructions that each needs.
ISAS = {"SSE4_2": "sse4_2", "AVX2": "avx2", "AVX512": "avx512f"}
FAST = """
attention beam buckets conll decoding depth entities exact_evaluation freeze likelihood losses
objective_models objectives optimizer order packing paired pairs parity pipeline
question_answering recurrent regression report sampling score_kinds sequence_tasks similarity
supervised t5_glue tagging task_metrics text_scores text_to_text zero_shot
""".split()


def instructions() -> set[str]:
    """Return the names of the processor's instruction sets, as Linux lists them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set().union(*(line.split(":")[1].split() for line in lines if line.startswith("flags")))


def combinations(have: set[str], cores: int):
    """Yield (instruction set, cores, why it is passed over or "")."""
    for isa, needed in ISAS.items():
        for number in (1, 2):
            why = f"this processor has no {isa}" if needed not in have else ""
            if number > cores:
                why = why or "only one core is at hand"
            yield isa, number, why


def main(arguments: list[str]) -> int:
    """Run every combination; return 1 if one of them failed."""
    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"instruction sets of x86 cannot be tested on {platform.machine()}")
        return 1
    cores = sorted(os.sched_getaffinity(0))
    files = [str(HERE / f"test_{name}.py") for name in FAST]
    failed = []
    for isa, number, why in combinations(instructions(), len(cores)):
        name = f"{isa} on {number} core{'s' * (number > 1)}"
        if why:
            print(f"== {name}: passed over, {why}", flush=True)
            continue
        print(f"== {name}", flush=True)
        code = subprocess.call(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-n",
                str(number if number > 1 else 0),
                *files,
                *arguments,
            ],
            env=os.environ | {"FLAXLM_TEST_ISA": isa},
            preexec_fn=lambda n=number: os.sched_setaffinity(0, cores[:n]),
        )
        failed += [name] * (code != 0)
    print(f"failed: {', '.join(failed)}" if failed else "every combination that was run passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
