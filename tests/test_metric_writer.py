"""What a run writes of its steps, and what of it stands after a kill."""

import json
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog

from flaxlm.training.config import TrainConfig
from flaxlm.training.metrics import MetricWriter, folded


def write(folder, step, steps):
    writer = MetricWriter(folder, TrainConfig(steps=9, log_every=1), tokens=8, flops=0.0, step=step)
    for number in steps:
        writer.write({"step": number, "loss": float(10 * step + number)})
    writer.close()


def events(folder):
    """Yield the events of all files, in the order of writing: length, checksum, event, checksum."""
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [3, 4, 5])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = {1: 1.0, 2: 2.0, 3: 23.0, 4: 24.0, 5: 25.0}
    assert {row["step"]: row["loss"] for row in rows} == expected
    assert len(rows) == len(expected)
    shown = []
    for event in events(tmp_path):
        if event.session_log.status == SessionLog.START:  # TensorBoard forgets from here on
            shown = [(step, loss) for step, loss in shown if step < event.step]
        shown += [(event.step, value.simple_value) for value in event.summary.value]
    assert shown == list(expected.items())


def test_a_tables_intervals_stand_behind_their_values():
    rows = {"f1": 0.5, "f1_high": 0.75, "f1_low": 0.25, "best_low": 1.0, "step": 3}
    assert folded(rows) == {"f1": "0.5000 (0.2500 to 0.7500)", "best_low": "1.0000", "step": "3"}
