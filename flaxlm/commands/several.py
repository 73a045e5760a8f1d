"""Several processes of one command: they find each other, and see that all are told the same."""

import contextlib
import dataclasses
import os
import socket

from flaxlm.errors import ConfigError, Unsafe
from flaxlm.processes import ending
from flaxlm.processes.connections import free_port, relay
from flaxlm.processes.group import Group
from flaxlm.training import manifest
from flaxlm.training.values import changes

JOIN_TIMEOUT = 300.0  # seconds
FOREVER = 7 * 86400  # seconds: JAX's own heartbeat, which aborts all without a word, waits longer
# What each process is told for itself: which it is, and where it sees the common directory.
OWN = ("coordinator", "num_processes", "process_id", "join_timeout", "workdir")


def join(options) -> None:
    """Connect the processes of a command, where it is one of several; see `ProcessOptions`."""
    coordinator = getattr(options, "coordinator", None)
    given = [name for name in OWN[1:4] if getattr(options, name, None) is not None]
    found = getattr(options, "joins", False) and _several_hosts()
    if given and not (coordinator or found):
        raise ConfigError(f"--{given[0]} needs --coordinator=HOST:PORT beside it")
    if not (coordinator or found):
        return
    if coordinator and None in (options.num_processes, options.process_id):
        raise ConfigError("--coordinator needs --num_processes and --process_id beside it")
    count, index, timeout = options.num_processes, options.process_id, options.join_timeout
    timeout = JOIN_TIMEOUT if timeout is None else timeout
    if found:
        from jax._src.clusters import ClusterEnv

        asked = (coordinator, count, index, None, None, int(timeout))
        with contextlib.suppress(ValueError, RuntimeError):  # what is set is no number, no address
            coordinator, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(*asked)
        if None in (coordinator, count, index):
            raise ConfigError(
                "several processes were started, and which one this is cannot be told from the "
                "environment; give --coordinator, --num_processes and --process_id"
            )
    if not 0 <= index < count:
        raise ConfigError(f"--process_id={index} is not one of --num_processes={count}, from 0 on")
    Group(index, count).join(coordinator, timeout)


def _several_hosts() -> bool:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    # A shell of `salloc` has the number of tasks, and is none of them.
    started = {"SLURM_PROCID", "OMPI_COMM_WORLD_RANK"} & os.environ.keys()
    tasks = os.environ.get("SLURM_NTASKS", "") if started else ""
    return max(hosts, int(tasks) if tasks.isdecimal() else 1) > 1


def agree(options, config) -> None:
    """End all processes where one has other code, or was told other things, than process 0."""
    group = ending.group
    if not group:
        return
    libraries = {name: v for name, v in manifest.versions().items() if name != "flaxlm"}
    if other := group.compare("code", manifest.code() | libraries):
        index, theirs, its = other
        names = sorted(theirs.keys() | its.keys())
        files = [name for name in names if theirs.get(name) != its.get(name)]
        more = f" and {len(files) - 3} more" * (len(files) > 3)
        group.end(
            Unsafe.exit_code,
            f"process {index}: has other code than process 0: {', '.join(files[:3])}{more}; "
            "install the same on all",
        )
    flags = {f"--{k}": v for k, v in dataclasses.asdict(options).items() if k not in OWN}
    told = {"flags": flags, "config": config.raw}
    if other := group.compare("config", told):
        index, theirs, its = other
        lines = [line for name in told for line in changes(theirs[name], its[name], free=())]
        group.end(
            ConfigError.exit_code,
            f"process {index}: was told other things than process 0: "
            f"{'; '.join(lines)}; start the same command on all",
        )


def connect_devices() -> None:
    """Let JAX connect the devices of the processes of a group."""
    import jax

    group = ending.group
    if other := group.compare("settings of JAX", manifest.settings()):
        index, theirs, its = other
        group.end(
            ConfigError.exit_code,
            f"process {index}: has other settings than process 0: "
            f"{'; '.join(changes(theirs, its, free=()))}; set the same in the environment of all",
        )
    (port, *_) = group.gather("jax", free_port() if group.lead else None)
    local = port if group.lead else relay(group.host, port)
    anywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    # Signals are ours, and so is who is alive.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"127.0.0.1:{local}",
        group.count,
        group.index,
        coordinator_bind_address=f"{anywhere}:{port}",
        heartbeat_timeout_seconds=FOREVER,
    )
