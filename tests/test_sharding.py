"""Devices of one CPU have the threads that their collectives wait in."""

import os
import pathlib
import types

import pytest

from flaxlm import sharding
from flaxlm.sharding import DEVICE_THREADS


@pytest.mark.parametrize(
    ("devices", "flags", "processes", "given", "left"),
    [
        (8, "", False, None, str(8 * DEVICE_THREADS)),
        (8, "", False, "4", str(8 * DEVICE_THREADS)),
        (8, "", False, "500", "500"),
        (8, "", False, "many", str(8 * DEVICE_THREADS)),
        (-1, "--xla_force_host_platform_device_count=4", False, None, str(4 * DEVICE_THREADS)),
        (
            -1,
            "--xla_force_host_platform_device_count=2 --xla_force_host_platform_device_count=4",
            False,
            None,
            str(4 * DEVICE_THREADS),
        ),
        (1, "--xla_cpu_max_isa=AVX2", True, None, str(DEVICE_THREADS)),
        # One device waits for nobody.
        (-1, "", False, None, None),
        (1, "", False, "4", "4"),
    ],
)
def test_threads_are_raised_where_devices_wait_for_each_other(
    devices, flags, processes, given, left, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("XLA_FLAGS", flags)
    if given is None:
        monkeypatch.delenv("NPROC", raising=False)
    else:
        monkeypatch.setenv("NPROC", given)
    config = types.SimpleNamespace(jax_num_cpu_devices=devices)
    monkeypatch.setattr(sharding, "jax", types.SimpleNamespace(config=config))
    sharding.make_room_for_collectives(processes)
    assert os.environ.get("NPROC") == left


def test_xla_takes_its_number_of_threads_from_there():
    tasks = pathlib.Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("threads are counted in /proc")
    names = [path.read_text().strip() for path in tasks.glob("*/comm")]
    assert names.count("tf_XLAEigen") == 8 * DEVICE_THREADS
