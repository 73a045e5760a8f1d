"""Files that only people look at: what cannot be written there is a warning, and the run goes on.

They are `metrics.jsonl`, the TensorBoard events, `run.json` and the profiler's trace. All else that
a run writes is a result or a checkpoint, and an error in writing it ends the run.
"""

import contextlib
import json
import pathlib
import socket
import struct
import time
import warnings

from flaxlm import files
from flaxlm.untrusted import file_bytes, parse_json, sealed, unsealed


class Log:
    """A file that records are added to, each whole or not at all; those that are lost are counted.

    The first error is a warning, and `close` says how much was lost.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.lost, self._said = path, 0, False

    @contextlib.contextmanager
    def spared(self, *kinds: type[Exception]):
        """Make an OSError, or an error of other `kinds`, a warning, the first time."""
        try:
            yield
        except (OSError, *kinds) as error:
            if not self._said:
                cause = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
                warnings.warn(
                    f"{self.path} cannot be written: {cause}; it is a log, so the run goes on "
                    "without",
                    stacklevel=3,
                )
            self._said = True

    def append(self, record: bytes) -> None:
        """Add a record."""
        self.lost += 1
        with self.spared():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.append(self.path, record)
            self.lost -= 1

    def close(self) -> None:
        """Say how much was lost, if anything."""
        if self.lost:
            warnings.warn(f"{self.path} lacks {self.lost:,} records", stacklevel=2)


class Rows(Log):
    """`metrics.jsonl`, of whose rows those are left out that the run repeats.

    These are the rows after `step`, and of evaluations those after `scored`: a run that was asked
    to stop at a step may have it saved, and still to evaluate. Each row has a checksum. What is no
    row any more (a torn line, a flipped bit) is moved to `metrics.jsonl.damaged`.
    """

    def __init__(self, path: pathlib.Path, step: int, scored: int | None = None):
        super().__init__(path)
        with self.spared():
            if path.is_file():
                self._tidy(file_bytes(path), step, step if scored is None else scored)

    def _tidy(self, data: bytes, step: int, scored: int) -> None:
        rows, damaged = [], {}
        for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
            at, evaluated = _step_of(line)
            if at is None and line:
                damaged[number] = line
            elif at is not None and at <= (scored if evaluated else step):
                rows.append(line)
        text = b"".join(line + b"\n" for line in rows)
        if damaged:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            files.append(aside, b"".join(line + b"\n" for line in damaged.values()))
            numbers = ", ".join(map(str, list(damaged)[:5])) + ", …" * (len(damaged) > 5)
            warnings.warn(
                f"{self.path}, line {numbers}: no row of metrics as it was written, moved to "
                f"{aside.name}; {len(rows):,} rows are kept",
                stacklevel=4,
            )
        if text != data:
            files.replace(self.path, text)

    def row(self, row: dict) -> None:
        """Add a row."""
        self.append(json.dumps(sealed(row)).encode() + b"\n")


def _step_of(line: bytes) -> tuple[int | None, bool]:
    """Return the step of a row of metrics, None where it is none, and whether it is of a split."""
    try:
        row = unsealed(parse_json(line))
    except ValueError:
        return None, False
    step = row.get("step")
    return step if type(step) is int else None, any("/" in name for name in row)


class Events(Log):
    """A run's TensorBoard events since `step`, at which whoever shows them forgets later ones.

    Written here, since tensorboardX leaves that to a thread: where it fails, the run waits forever.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{step}"
        super().__init__(folder / name)
        self._step = step

    def row(self, row: dict) -> None:
        """Add the values of a row."""
        # A second to import: not before it is needed.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        now = time.time()
        if not self.path.exists():
            begin = {"step": self._step + 1, "session_log": SessionLog(status=SessionLog.START)}
            for event in ({"file_version": "brain.Event:2"}, begin if self._step else {}):
                if event:
                    self.append(_framed(Event(wall_time=now, **event).SerializeToString()))
        values = [Summary.Value(tag=k, simple_value=v) for k, v in row.items() if k != "step"]
        event = Event(wall_time=now, step=row["step"], summary=Summary(value=values))
        self.append(_framed(event.SerializeToString()))


def _framed(data: bytes) -> bytes:
    """Return a record of a TFRecord file: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    size = struct.pack("<Q", len(data))
    return b"".join(
        (size, struct.pack("<I", masked_crc32c(size)), data, struct.pack("<I", masked_crc32c(data)))
    )
