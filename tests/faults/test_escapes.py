"""What is printed is shown and not obeyed: controls, directions and markup of hostile texts."""

import csv
import io
import logging
import sys
import threading
import types
import warnings

import numpy as np
import pytest
from command_line import CommandLine

from flaxlm import __main__ as main
from flaxlm import progress
from flaxlm.commands import generate
from flaxlm.evaluation import report
from flaxlm.evaluation.evaluate import Evaluation
from flaxlm.processes import ending
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import Answer
from flaxlm.training.metrics import table
from flaxlm.untrusted import printable

# Clear the screen, set a title, a C1 sequence, an override of direction, a bell, markup of Rich.
EVIL = "\x1b[2Ja\x1b]0;t\x07\x9b31m\u202e\u2066[red]x[/red][link=file:///etc]y[/link]:smile:"
SHOWN = r"\x1b[2Ja\x1b]0;t\x07\x9b31m\u202e\u2066[red]x[/red][link=file:///etc]y[/link]:smile:"
LANGUAGES = "العربية עברית 中文 👩‍👩‍👧 می‌خواهم é\tß"


def test_controls_are_escaped_and_languages_are_not():
    assert printable(EVIL) == SHOWN
    assert printable(LANGUAGES) == LANGUAGES
    for code in (*range(9), *range(10, 32), *range(0x7F, 0xA0), 0x61C, 0x200B, 0x200E, 0x200F,
                 *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xD800):  # fmt: skip
        assert printable(chr(code)).isascii() and printable(chr(code)).startswith("\\")


def test_every_line_on_standard_error_goes_through_it(capsys, monkeypatch):
    monkeypatch.setattr(ending, "_said", threading.Lock())
    monkeypatch.setattr(main.signals, "listen", lambda **_: None)
    monkeypatch.setattr(logging, "setLogRecordFactory", lambda factory: None)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    main.fail(EVIL, 2)
    progress.note(EVIL)
    progress.say(EVIL)
    with progress.Progress(EVIL, 3) as bar:
        bar.update(1, EVIL)
    monkeypatch.setattr(sys, "argv", ["flaxlm", EVIL])
    with warnings.catch_warnings():
        monkeypatch.setattr(main, "run", lambda argv: warnings.warn(EVIL, stacklevel=1))
        assert main.main() == 0
    err = capsys.readouterr().err
    assert err.count(SHOWN) == 6 and "warning: " in err
    assert not set(err) & set("\x1b\x07\x9b\u202e\u2066")


def test_what_libraries_log_and_their_threads_raise_goes_through_it(tmp_path):
    line = CommandLine(tmp_path)
    (tmp_path / "other.py").write_text(
        f"import logging, sys, threading\nEVIL = {EVIL!r}\n"
        "def fails():\n    raise OSError(EVIL)\n"
        "def run(argv):\n"
        "    logging.getLogger('asyncio').error('%s', EVIL)\n"
        "    try:\n        fails()\n"
        "    except OSError:\n        logging.getLogger('absl').exception(EVIL)\n"
        "    thread = threading.Thread(target=fails)\n"
        "    thread.start()\n    thread.join()\n"
        "from flaxlm import __main__\n__main__.run = run\nsys.exit(__main__.main())\n"
    )
    done = line(str(tmp_path / "other.py"))
    assert done.code == 0 and done.err.count(SHOWN) == 4, done.err
    assert done.err.count("Traceback") == 2
    assert not set(done.err) & set("\x1b\x07\x9b\u202e\u2066")


def test_a_bar_on_a_terminal_obeys_no_markup(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress(f"title {EVIL}", 3) as bar:
        bar.update(1, f"text {EVIL}")
    for what in ("title", "text"):
        assert f"{what} {SHOWN}" in terminal.getvalue()
    assert not set(terminal.getvalue()) & set("\x07\x9b\u202e\u2066")


def test_tables_obey_no_markup(capsys):
    table({"name": EVIL, EVIL: 1.5}, EVIL)
    out = capsys.readouterr().out
    assert out.count("[red]x[/red]") == 3 and out.count(r"\x1b[2Ja\x1b]0;t\x07\x9b31m") == 3
    assert not set(out) & set("\x1b\x07\x9b\u202e\u2066")


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text_is_escaped_on_a_terminal_alone(terminal, tmp_path, monkeypatch, capsys):
    made = generate.generation.Generation(EVIL, EVIL + "\nb\r\n", [1], 0.0, True)
    monkeypatch.setattr(generate, "generate", lambda *_: [made])
    monkeypatch.setattr(generate, "report", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    options = types.SimpleNamespace(prompt=[EVIL], prompts=None, place=tmp_path)
    generate.run(options, None)
    expected = f"--- {SHOWN}\n{SHOWN}\nb\\r\n\n" if terminal else f"--- {EVIL}\n{EVIL}\nb\r\n\n"
    assert capsys.readouterr().out == expected


LABELS = ("=1+1", "a\rb", "-1.5", "@sum", "$\\frac{$", EVIL)


def test_reports_show_hostile_labels_and_texts(tmp_path):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(len(LABELS)), 40)
    golds = rng.integers(0, len(LABELS), 40).tolist()
    examples = [{"id": f"{EVIL}:{i}", "text": f"{EVIL} {i}"} for i in range(40)]
    answers = [Answer(int(row.argmax()), float(row.max()), row) for row in shares]
    found = Evaluation({"accuracy": 0.5}, examples, golds, answers)
    report.write(tmp_path, found, TASKS["classification"](), LABELS)
    worst = (tmp_path / "errors.txt").read_bytes().decode()
    assert SHOWN in worst and not set(worst) & set("\x1b\x07\x9b\r\u202e\u2066")
    with (tmp_path / "confusion.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head[1:] == ["'=1+1", "a\rb", "-1.5", "'@sum", *LABELS[4:]]
    assert [line[0] for line in lines] == head[1:] and all(len(line) == 7 for line in lines)


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1", "'=1"), ("+1", "+1"), ("+a", "'+a"), ("-1.5e3", "-1.5e3"), ("-", "'-"), ("@a", "'@a"),
     ("\ta", "'\ta"), ("\ra", "\"'\ra\""), ("a\rb", '"a\rb"'), ('a"b', '"a""b"'), ("a,b", '"a,b"'),
     ("--1", "'--1"), ("-1+cmd|x", "'-1+cmd|x"), (-3, "-3"), ("a=b", "a=b")],
)  # fmt: skip
def test_a_cell_is_no_formula(cell, written):
    assert report.csv_line([cell, 7]) == f"{written},7\n"


def test_the_command_line_shows_names_of_files_and_keys(tmp_path):
    line, name = CommandLine(tmp_path), "\x1b[31m\u202e[red]"
    shown = r"\x1b[31m\u202e[red]"
    for arguments in (
        ("train", f"--config={name}.py", f"--workdir={tmp_path / 'run'}"),
        (
            "train",
            "--config=quickstart",
            f"--config.data.path={name}",
            f"--workdir={tmp_path / 'run'}",
        ),
        ("inspect", f"--workdir={tmp_path / name}"),
        ("inspect", f"--workdir=hf:{tmp_path / name}"),
        (name,),
        ("train", f"--{name}"),
    ):
        done = line(*arguments)
        assert done.code in (2, 66) and shown in done.errors[0], done.err
        assert not set(done.out + done.err) & set("\x1b\u202e"), done.err
