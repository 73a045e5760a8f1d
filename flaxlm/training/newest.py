"""What the newest checkpoint of a run says of the run; nothing here reads arrays."""

import contextlib
import os
from pathlib import Path

from flaxlm.training.manifest import Damaged, Manifest, verify_files
from flaxlm.training.store import Store

CONFIG = "config.json"
Newest = tuple[Path, Manifest]  # the directory of a checkpoint and what its manifest says


def newest(run: str | os.PathLike) -> Newest | None:
    """Return the newest checkpoint of a run with `config.json` as it was written, if any."""
    store = Store(run)
    for step in reversed(store.committed() if not store.single else ()):
        with contextlib.suppress(Damaged, KeyError):
            record = Manifest.read(store.path(step))
            verify_files(store.path(step), {CONFIG: record.files[CONFIG]})
            return store.path(step), record
    return None


def may_move(own: Newest | None) -> bool:
    """Return whether a run's data may lie elsewhere: what is read there is compared by itself."""
    return own is not None and isinstance(own[1].extra.get("data"), dict)


def is_run(run: str | os.PathLike) -> bool:
    """Return whether a directory holds a config, or checkpoints to restore it from."""
    return (Path(run) / CONFIG).exists() or newest(run) is not None


def begun(run: Path) -> bool:
    """Return whether checkpoints stand in a run directory."""
    return any((run / "checkpoints").glob("step_*"))
