"""Every test runs on 8 virtual CPU devices, with rank promotion an error."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the suite's time is compilation, which is quicker without LLVM's optimisations: some tests
# of the step took 74 s instead of 119, those with real weights 102 s instead of 116. Where
# everything is compared (`make parity`) programs are compiled as users have them.
if not {"FLAXLM_PARITY", "FLAXLM_ZERO_SHOT"} & os.environ.keys():
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(
    os.environ.get("FLAXLM_TEST_DATA", pathlib.Path(__file__).parents[2] / "shared")
)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiled programs are shared within one run of the suite, subprocesses included.

    JAX_COMPILATION_CACHE_DIR keeps them from one run to the next.
    """
    path = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("jax_cache"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = path
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
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
