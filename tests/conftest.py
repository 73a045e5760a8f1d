"""Every test runs on 8 virtual CPU devices, with rank promotion an error."""

import os
import pathlib
import shutil
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the suite's time is compilation. Four families' training takes 81 s of CPU without LLVM's
# optimisations, and 49 with the older of XLA's emitters and one module for LLVM as well. Where
# everything is compared (`make parity`) programs are compiled as users have them.
if not {"FLAXLM_PARITY", "FLAXLM_ZERO_SHOT"} & os.environ.keys():
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")  # a wrapper around every call of JAX
# Every program is worth keeping, for the other worker and for the commands that tests start.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Virtual devices that wait 40 s for each other end the process; a busy host may stall for longer.
if "terminate_timeout" not in os.environ.get("XLA_FLAGS", ""):
    patience = " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + patience
# An instruction set that programs are compiled for, beside whatever else is asked for: `isas.py`.
if "FLAXLM_TEST_ISA" in os.environ:
    cap = f"--xla_cpu_max_isa={os.environ['FLAXLM_TEST_ISA']}"
    if cap not in os.environ.get("XLA_FLAGS", "").split():  # workers inherit what is set here
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {cap}"

import ctypes
import gc

import jax
import pytest
from longest import LONGEST

from flaxlm import sharding

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
sharding.make_room_for_collectives()
jax.devices()
os.environ.pop("NPROC", None)  # commands that tests start make room themselves

SHARED = pathlib.Path(
    os.environ.get("FLAXLM_TEST_DATA", pathlib.Path(__file__).parents[2] / "shared")
)


def pytest_collection_modifyitems(items):
    """Order the files, the longest first; tests stay as they stand in theirs."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish(session):
    """Collect garbage less often, and not among what was imported: tracing allocates much."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


MOST_MEMORY = 3e9  # bytes, of a worker between two files


def memory() -> float:
    """Return how many bytes of memory this process has; without /proc, infinitely many."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("inf")
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def memory_of_files():
    """Give back what files compiled and kept where it is much; a worker would grow to 5 GB.

    What is given back, the next file traces and compiles again: a sixth of the time.
    """
    yield
    if memory() < MOST_MEMORY:
        return
    for name, module in list(sys.modules.items()):
        for value in list(vars(module).values()) if name.startswith("test_") else ():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps what is freed, two gigabytes here


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Commands that tests start share their compiled programs within one run of the suite.

    JAX_COMPILATION_CACHE_DIR keeps them from one run to the next.
    """
    if path := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", path)
    else:
        # Of 2,900 programs of the tests themselves a dozen were there already.
        path = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("jax_cache"))
    return path


@pytest.fixture(scope="session")
def shared():
    """Return a function that finds real test data, or skips the test saying what is absent."""

    def find(name: str) -> pathlib.Path:
        path = SHARED / name
        if not path.exists():
            # CI has the data: there, a missing file is a failure and not a skip.
            if os.environ.get("FLAXLM_REQUIRE_DATA"):
                pytest.fail(f"real data absent: {path}")
            pytest.skip(f"real data absent: {path} (set FLAXLM_TEST_DATA)")
        return path

    return find


@pytest.fixture(scope="module")
def one_device():
    """Compile for one device: `pytest.mark.usefixtures` for files that are of no mesh."""
    import tiny_runs

    with tiny_runs.one_device():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, compilation_cache):
    """Return the command line, in a folder of its own."""
    from command_line import CommandLine

    here = tmp_path_factory.mktemp("line")
    return CommandLine(here, cwd=here)


@pytest.fixture(scope="session")
def texts():
    """Return some files of Python's standard library, to train tokenizers on."""
    from flaxlm.data.sources import stdlib_files

    names = stdlib_files(include=["json/*", "textwrap.py", "shlex.py"])
    return [name.read_text(encoding="utf-8") for name in names]


@pytest.fixture(scope="module")
def abstract():
    """Return the checkpoint tests' state as ShapeDtypeStructs."""
    import checkpoint_cases

    return checkpoint_cases.abstract_of(checkpoint_cases.make_state())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a run directory with three checkpoints, to be read."""
    import checkpoint_cases

    return checkpoint_cases.write_steps(tmp_path_factory.mktemp("written"))


@pytest.fixture
def copied(written, tmp_path):
    """Return a copy of `written`, to damage."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "run"))
