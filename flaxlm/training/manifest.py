"""What one checkpoint holds, written last into it: the commit, and what restoring is checked by.

`manifest.json` names every leaf with its shape, dtype and digest, every file beside the arrays with
its SHA-256, and where the state came from. It carries a checksum of itself, so that damage to the
manifest is told from damage to the arrays.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxlm.errors import raise_scarce
from flaxlm.untrusted import checksum, file_bytes, parse_json

NAME = "manifest.json"
FORMAT = 1
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
LIBRARIES += ("tokenizers",)


class Damaged(Exception):
    """One checkpoint does not hold what was written; the message names what is wrong in it."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Shape, dtype name and digest (8 hexadecimal digits, `tree.digests`) of one array."""

    shape: tuple[int, ...]
    dtype: str
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`."""

    step: int  # updates that the state has seen
    leaves: dict[str, Leaf]  # of the whole state, by path
    metrics: dict[str, float | None]  # that the step was saved with; None: a non-finite value
    extra: dict[str, Any]  # what the run adds, as hashes of its config, tokenizer and data
    mesh: dict[str, int]  # {axis: size} of the mesh that wrote it; empty off a mesh
    fingerprint: dict[str, Any]  # of the machine that wrote it
    versions: dict[str, str]  # by package
    files: dict[str, str]  # {relative name: SHA-256} of the files beside the arrays
    saved: str  # when, in UTC, ISO 8601

    def branch(self, prefix: str) -> dict[str, Leaf]:
        """Return {path without its prefix: leaf} of one branch, such as `params/`."""
        return {
            path.removeprefix(prefix): leaf
            for path, leaf in self.leaves.items()
            if path.startswith(prefix)
        }

    def digests(self, prefix: str) -> dict[str, str]:
        """Return {path without its prefix: digest} of one branch."""
        return {path: leaf.digest for path, leaf in self.branch(prefix).items()}

    def to_bytes(self) -> bytes:
        """Return the JSON text, its checksum included."""
        body = dataclasses.asdict(self)
        body["leaves"] = {p: [list(v.shape), v.dtype, v.digest] for p, v in self.leaves.items()}
        body["format"] = FORMAT
        body = json.loads(json.dumps(body))  # as it will be read: tuples are lists, keys strings
        body["checksum"] = checksum(body)
        return (json.dumps(body, indent=1) + "\n").encode()

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read `directory/manifest.json`; raises Damaged if it is not what was written."""
        try:
            body = parse_json(file_bytes(directory / NAME), whole=False)
            written, kind = body.pop("checksum"), body["format"]
        except FileNotFoundError:
            raise Damaged(f"{NAME} is missing") from None
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise_scarce(error)
            raise Damaged(f"{NAME} cannot be read ({type(error).__name__})") from error
        if written != checksum(body):
            raise Damaged(f"{NAME} is not what was written (its checksum differs)")
        if kind != FORMAT:
            raise Damaged(f"{NAME} has format {kind}; this version of flaxlm reads {FORMAT}")
        del body["format"]
        body["leaves"] = {
            path: Leaf(tuple(shape), dtype, digest)
            for path, (shape, dtype, digest) in body["leaves"].items()
        }
        return cls(**body)


def finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics as JSON numbers; a non-finite one becomes None."""
    values = {n: v if isinstance(v, int | None) else float(v) for n, v in metrics.items()}
    return {n: v if v is not None and math.isfinite(v) else None for n, v in values.items()}


def file_hashes(directory: Path, names) -> dict[str, str]:
    """Return `{relative name: SHA-256}` of files, and of every file in directories, in `names`."""
    hashes = {}
    for path in (directory / name for name in names):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            hashes[file.relative_to(directory).as_posix()] = _sha256(file)
    return hashes


def _sha256(file: Path) -> str:
    return hashlib.sha256(file_bytes(file)).hexdigest()


def verify_files(directory: Path, files: Mapping[str, str]) -> None:
    """Raise Damaged, naming it, where a file is not there or has not the SHA-256 of `files`."""
    for name, expected in files.items():
        try:
            digest = _sha256(directory / name)
        except OSError as error:
            raise_scarce(error)
            raise Damaged(f"file {name} cannot be read ({error.strerror})") from error
        if digest != expected:
            raise Damaged(f"file {name} is not what was written (its SHA-256 differs)")


@functools.cache
def code() -> dict[str, str]:
    """Return {file of the package: its digest} of the code that runs here."""
    package = Path(__file__).parents[1]
    return {
        path.relative_to(package).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(package.rglob("*.py"))
    }


# Variables that may decide numbers, and those of them that say where, with whom and how loudly.
_DECIDES = re.compile("JAX_|LIBTPU_INIT_ARGS|NVIDIA_TF32_OVERRIDE")
_HARMLESS = re.compile(
    "CACHE|LOG|TRACEBACK|DEBUG|EXPLAIN|CHECK|PLATFORM|COORDINATOR|PROCESS|PROFILER|DUMP|GUARD"
    "|DEVICE|PREEMPTION|HEARTBEAT|PROMOTION"
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what reads data, computes and stores a state."""
    versions_of = {"python": platform.python_version()}
    for name in ("flaxlm", *LIBRARIES):
        try:
            versions_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions_of[name] = "source"  # run from a checkout, not installed
    return versions_of


def fingerprint() -> dict[str, Any]:
    """Return what decides the bits of a computation, beside the program and its inputs.

    On XLA:CPU the same fingerprint gives the same bits; the number of cores and the instruction
    set decide how sums are split.
    """
    import jax

    devices, asked = jax.devices(), getattr(os, "sched_getaffinity", None)
    unusual = {"threads": os.environ["NPROC"]} if "NPROC" in os.environ else {}
    return (
        unusual
        | settings()
        | {
            "device": devices[0].device_kind,
            "devices": len(devices),
            "processes": jax.process_count(),
            "cores": len(asked(0)) if asked else os.cpu_count(),
            "isa": _isa(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        }
    )


def settings() -> dict[str, str]:
    """Return the settings of JAX and XLA that decide numbers; of some only what is no default.

    Whatever else stands in the environment for JAX may decide them too.
    """
    import jax

    from flaxlm.sharding import xla_flags

    usual = {"default_prng_impl": "threefry2x32", "threefry_partitionable": True}
    names = (*usual, "enable_x64", "disable_jit", "random_seed_offset")
    values = {name: getattr(jax.config, f"jax_{name}") for name in names}
    unusual = {n: str(v) for n, v in values.items() if v != usual.get(n, False)}
    known = {f"JAX_{name}".upper() for name in (*names, "default_matmul_precision")}
    unusual |= {
        name: value
        for name, value in sorted(os.environ.items())
        if _DECIDES.match(name) and not _HARMLESS.search(name) and name not in known
    }
    return unusual | {
        "xla_flags": " ".join(sorted(xla_flags().split())),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
    }


def _isa() -> str:
    """Return the machine and the widest vector instructions that it has."""
    wanted = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    lines = (x for x in text.splitlines() if x.lower().startswith(("flags", "features")))
    flags = next(lines, "").partition(":")[2].split()
    return " ".join([platform.machine(), *(name for name in wanted if name in flags)])
