"""One operation on a directory, run under faults: `operations.py NAME DIRECTORY`.

`operations.py reading DIRECTORY…` reads runs, several of them in one process.

What the operation says of an error is one `error:` line and the exit code, as of a command.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
import tempfile
import traceback

import numpy as np

from flaxlm.__main__ import fail
from flaxlm.errors import FlaxlmError, StorageError

STEPS = (1, 2, 3)  # of which the second is the best


def state_of(step: int) -> dict:
    """Return the state of a step, a function of the step alone."""
    rng = np.random.default_rng(step)
    return {"params": {"kernel": rng.normal(size=(64, 33)).astype(np.float32)}}


def saver_of(directory: pathlib.Path, **more):
    """Return the Checkpointer of a directory."""
    from flaxlm.training.checkpoint import CheckpointConfig, Checkpointer

    (directory.parent / "tokenizer").mkdir(exist_ok=True)
    (directory.parent / "tokenizer" / "tokenizer.json").write_text("pieces")
    files = {"config.json": b"{}", "tokenizer": directory.parent / "tokenizer"}
    return Checkpointer(directory, CheckpointConfig(keep=1), files=files, **more)


def write_step(directory: pathlib.Path, step: int) -> None:
    """Save a step with its score, as the loop does."""
    import jax

    from flaxlm.training.workdir import Workdir

    with Workdir(directory), saver_of(directory) as saver:
        state = jax.tree.map(jax.numpy.asarray, state_of(step))
        saver.save(step, state, {"valid/loss": abs(step - 2.0)})


def prepare_save(directory: pathlib.Path) -> None:
    for step in STEPS[:-1]:
        write_step(directory, step)


def save(directory: pathlib.Path) -> None:
    """Save step 3 beside step 2, which is the best and stays."""
    write_step(directory, 3)


def prepare_best(directory: pathlib.Path) -> None:
    prepare_save(directory)
    with saver_of(directory) as saver:
        saver.save(3, state_of(3))


def best(directory: pathlib.Path) -> None:
    """Give step 3, which is saved, its score: the best of all, it outlives step 4."""
    from flaxlm.training.workdir import Workdir

    with Workdir(directory), saver_of(directory) as saver:
        saver.prune(saver.latest())  # as the loop does when it resumes
        if saver.latest() == 3:
            saver.save(3, state_of(3), {"valid/loss": -0.5})
        saver.save(4, state_of(4), {"valid/loss": 9.0})


def prepare_tokenize(directory: pathlib.Path) -> None:
    directory.mkdir(exist_ok=True)


def tokenize(directory: pathlib.Path) -> None:
    """Make tokenizer and cache of a text of several parts."""
    from flaxlm.data import cache
    from flaxlm.data.sources import DataConfig
    from flaxlm.data.tokenizer import TokenizerConfig
    from flaxlm.training.workdir import Workdir

    cache.PART_CHARS = 6000
    path = directory.parent / "text.txt"
    if not path.exists():
        path.write_text("".join(f"The sea was calm on day {i}. We rowed.\n\n" for i in range(300)))
    data = DataConfig(path=str(path), document="paragraph", sentences=True, workers=1)
    with Workdir(directory):
        cache.prepare(data, TokenizerConfig(kind="byte"), directory)


def prepare_report(directory: pathlib.Path) -> None:
    directory.mkdir(exist_ok=True)


def report(directory: pathlib.Path) -> None:
    """Write the report of an evaluation and merge its scores into `result.json`."""
    from flaxlm.evaluation import report
    from flaxlm.evaluation.evaluate import Evaluation
    from flaxlm.tasks import TASKS
    from flaxlm.tasks.task import Answer
    from flaxlm.training.metrics import write_result
    from flaxlm.training.workdir import Workdir

    rows = [{"id": str(i), "text": f"text {i}", "label": i % 2} for i in range(30)]
    scores = [np.array([0.3, 0.7]) if i % 3 else np.array([0.6, 0.4]) for i in range(30)]
    answers = [Answer(int(s.argmax()), float(s.max()), s) for s in scores]
    golds = [row["label"] for row in rows]
    evaluation = Evaluation({"accuracy": 0.5}, rows, golds, answers)
    task = TASKS["classification"]()
    with Workdir(directory):
        report.write(directory / "evaluations" / "task-valid", evaluation, task, ("a", "b"), 3)
        write_result(directory, {"valid/accuracy": 0.5})


def read(directory: pathlib.Path) -> None:
    """Print what the verbs read of a run: all that a resume begins with, and its reports."""
    import hashlib

    from flaxlm import tree
    from flaxlm.evaluation import compare
    from flaxlm.training import config as run_config
    from flaxlm.training.checkpoint import Checkpointer
    from flaxlm.training.inputs import Inputs
    from flaxlm.training.logs import Rows
    from flaxlm.untrusted import unsealed

    config = run_config.build(run_config.expand(run_config.read_run(str(directory))))
    with Inputs.open(config, directory) as inputs:
        found = {"config": inputs.config.to_json(), "tokenizer": inputs.tokenizer.hash}
        batches = inputs.train(inputs.config.train.batch_size)
        made = [batches.rows(step, 0, batches.batch_size) for step in range(3)]
        rows = b"".join(row[name].tobytes() for row in made for name in sorted(row))
        found["batches"] = hashlib.sha256(rows).hexdigest()
        saved = Checkpointer(directory, config.checkpoint, inputs.identity(), inputs.files())
        inputs.check_data(saved)
        arrays, record = saved.restore_params(prefix="")
        flat = sorted(tree.flatten(arrays).items())
        # Of the arrays themselves: the manifest has what they are to be.
        state = hashlib.sha256(b"".join(path.encode() + x.tobytes() for path, x in flat))
        found["state"] = [dataclasses.asdict(record), state.hexdigest()]
        Rows(directory / "metrics.jsonl", record.step)
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    # Which are shown, and decide nothing.
    found["metrics"] = [unsealed(json.loads(row)) for row in rows]
    for report in sorted(directory.glob("evaluations/[!.]*")):
        found[report.name] = [compare.mistakes(report), compare.scores([report])]
    print(json.dumps(found, sort_keys=True))


OPERATIONS = {
    "a save": (prepare_save, save),
    "the best hand-over": (prepare_best, best),
    "tokenizing": (prepare_tokenize, tokenize),
    "a report": (prepare_report, report),
}


def run(operation, directory: str) -> tuple[int, str]:
    """Run an operation, or what has to be there before it; return the exit code and the error."""
    try:
        operation(pathlib.Path(directory))
    except FlaxlmError as error:
        return error.exit_code, str(error)
    except OSError as error:
        return StorageError.exit_code, f"{error.filename or directory}: {error.strerror}"
    return 0, ""


def read_each(directories: list[str]) -> None:
    """Read several runs; print a line for each: exit code, error, what was printed where."""
    whole = os.dup(2)
    for directory in directories:
        out = io.StringIO()
        with tempfile.TemporaryFile() as err:
            os.dup2(err.fileno(), 2)  # loggers keep the stream, and libraries know no other
            try:
                with contextlib.redirect_stdout(out):
                    code, error = run(read, directory)
            except Exception:
                code, error = 70, traceback.format_exc()
            sys.stderr.flush()
            os.dup2(whole, 2)
            err.seek(0)
            print(json.dumps([code, error, out.getvalue(), err.read().decode()]), flush=True)


def main(name: str, *arguments: str) -> int:
    """Run an operation on a directory, or with a second argument what has to be there before it."""
    if name == "reading":
        read_each(list(arguments))
        return 0
    prepare, operation = OPERATIONS[name]
    code, error = run(prepare if arguments[1:] else operation, arguments[0])
    return fail(error, code) if code else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
