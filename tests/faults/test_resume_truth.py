"""What a resume says of the bits to come is so, and other data or another config is refused."""

import dataclasses
import json
import pathlib
import re
import shutil
import types

import flax
import pytest
import tiny_runs as tiny
from resume_cases import LINES, table, task_recipe, text_file, text_recipe

import flaxlm
from flaxlm.errors import Unsafe
from flaxlm.train import train
from flaxlm.training import history, manifest
from flaxlm.training.config import from_dict
from flaxlm.training.manifest import Manifest

pytestmark = pytest.mark.usefixtures("one_device")


def append(path: pathlib.Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    path.write_bytes(data)


TEXT = {
    "appended": (lambda d: append(d / "b.txt", "more\n"), "5 bytes were appended to .*b.txt"),
    "a byte": (lambda d: flip(d / "a.txt"), r"a.txt was changed \(of the same size\)"),
    "shorter": (lambda d: text_file(d / "a.txt", LINES[:50]), r"a.txt was changed \(.* → .* bytes"),
    "missing": (lambda d: (d / "a.txt").unlink(), "a.txt is missing"),
    "new": (lambda d: text_file(d / "c.txt"), "c.txt is new"),
    "swapped": (lambda d: ((d / "a.txt").rename(d / "c"), (d / "b.txt").rename(d / "a.txt"),
                           (d / "c").rename(d / "b.txt")), "a.txt was changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXT)
def test_other_text_is_refused_naming_the_file(case, text_run):
    change, message = TEXT[case]
    before = {p: p.read_bytes() for p in (text_run / "text").iterdir()}
    change(text_run / "text")
    try:
        with pytest.raises(Unsafe, match=f"trained on other data up to step 2.*{message}"):
            train(from_dict(text_recipe(text_run, train={"steps": 4})), text_run / "run")
    finally:
        shutil.rmtree(text_run / "text")
        (text_run / "text").mkdir()
        for path, contents in before.items():
            path.write_bytes(contents)


ROWS = {
    "rows of training": (lambda r: table(r / "a.jsonl", 50),
                         "bytes were appended to .*a.jsonl; the train split has 50 examples "
                         "instead of 40"),
    "a label": (lambda r: (r / "a.jsonl").write_text(
        (r / "a.jsonl").read_text().replace("even", "odd", 1)), r"a.jsonl was changed"),
    "rows judged by": (lambda r: table(r / "b.jsonl", 10), "b.jsonl was changed"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_other_rows_of_a_task_are_refused_naming_the_file(case, task_run):
    change, message = ROWS[case]
    before = {p: p.read_bytes() for p in task_run.glob("*.jsonl")}
    change(task_run)
    try:
        with pytest.raises(Unsafe, match=message):
            train(from_dict(task_recipe(task_run, train={"steps": 4, "length": 24})),
                  task_run / "run")  # fmt: skip
    finally:
        for path, contents in before.items():
            path.write_bytes(contents)


def test_a_checkpoint_that_does_not_say_its_data_goes_on_and_says_so(task_run, tmp_path, capfd):
    shutil.copytree(task_run / "run", tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / "step_00000002"
    record = Manifest.read(place)
    extra = {name: value for name, value in record.extra.items() if name != "data"}
    (place / "manifest.json").write_bytes(dataclasses.replace(record, extra=extra).to_bytes())
    train(from_dict(task_recipe(task_run)), tmp_path / "run")
    assert capfd.readouterr().err.count("does not say what data it was trained on") == 1
    whole = dataclasses.replace(record, extra=extra | {"data": ["0" * 64]})  # as of a text
    (place / "manifest.json").write_bytes(whole.to_bytes())


def test_a_file_that_only_moved_is_the_same_data(task_run, text_run, tmp_path):
    """Its contents are compared and not where it lies; other contents change nothing there."""
    for root, make in ((task_run, task_recipe), (text_run, text_recipe)):
        here = pathlib.Path(shutil.copytree(root, tmp_path / root.name))
        result = train(from_dict(make(here, train=make(here)["train"] | {"steps": 3})),
                       here / "run")  # fmt: skip
        assert result["step"] == 3
    before = (here / "run" / "config.json").read_bytes()
    text_file(here / "text" / "c.txt", LINES[:3])
    shutil.move(here / "text", here / "elsewhere")
    recipe = make(here, data=make(here)["data"] | {"path": str(here / "elsewhere")})
    with pytest.raises(Unsafe, match=f"{here / 'elsewhere' / 'c.txt'} is new"):
        train(from_dict(recipe), here / "run")
    assert (here / "run" / "config.json").read_bytes() == before


def losses(run: pathlib.Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.parametrize(("schedule", "first"), [("linear", 2), ("wsd", None)])
def test_a_longer_duration_promises_the_bits_of_a_run_from_the_start_only_where_it_has_them(
    schedule, first, text_run, tmp_path, capfd
):
    def go(run, steps):
        sections = {"optimizer": {"schedule": schedule}, "eval": {"split": ""}}
        recipe = text_recipe(text_run, train={"steps": steps}, **sections)
        recipe["data"]["cache_dir"] = str(text_run / "run" / "cache")
        train(from_dict(recipe), tmp_path / run)
        return capfd.readouterr().err, losses(tmp_path / run)

    go("resumed", 4)
    said, resumed = go("resumed", 6)
    _, straight = go("straight", 6)
    (line,) = re.findall("resuming from step 4: (.*)", said)
    if first is None:
        assert line.endswith("the same bits: as if never interrupted") and resumed == straight
        return
    assert next(n for n in resumed if resumed[n] != straight[n]) == first + 1
    assert f"not the same bits: steps 1 to 4 were made with the schedule of a run of 4 steps, " \
        f"which differs from that of 6 from step {first} on" in line  # fmt: skip
    assert "as if never" not in said
    # It is known of for good: the steps after it were made as those of a run of 6.
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000004")
    said, _ = go("resumed", 6)
    assert "steps 1 to 4 were made with the schedule of a run of 4 steps" in said
    assert "as if never" not in said


def test_what_every_change_that_is_let_through_does_to_the_promise(text_run):
    """Of each key that a resumed run may change: bits, the best step, or nothing."""
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": 1})

    def said(then, now, made=4, mesh_now=mesh):
        old, new = (from_dict(text_recipe(text_run, **x)) for x in (then, now))
        parts = [[0, history.facts(old, mesh, old.train.total_steps(64))]]
        facts = history.facts(new, mesh_now, new.train.total_steps(64))
        return history.promise(parts, made, facts, new)

    def given(**keys):
        sections = {"train": {"steps": 8}, "eval": {"every": 2}}
        for key, value in keys.items():
            section, _, name = key.partition("_")
            sections[section] = sections.get(section, {}) | {name: value}
        return sections

    cosine = {"schedule": "cosine", "warmup_steps": 4}
    before = given() | {"optimizer": cosine}
    same = "the same bits: as if never interrupted"
    for keys in ({"train_log_every": 3}, {"checkpoint_every": 2}, {"data_prefetch": 1},
                 {"train_skip_nonfinite": 3}, {"checkpoint_keep": 5}):  # fmt: skip
        assert said(before, given(**keys) | {"optimizer": cosine}).endswith(same), keys
    longer = given(train_steps=12) | {"optimizer": cosine}
    assert said(before, longer).endswith(same)  # so far it warmed up
    assert "from step 6 on" in said(before, longer, made=7)
    epochs = {"train": {"steps": 0, "epochs": 2.0}, "eval": {"every": 2}, "optimizer": cosine}
    assert said(before, epochs).endswith(same)  # 2 of 64 rows are 8 steps of 16
    share = {"schedule": "constant", "warmup_steps": 0, "warmup_fraction": 0.5}
    assert "from step 1 on" in said(given() | {"optimizer": share},
                                    given(train_steps=12) | {"optimizer": share})  # fmt: skip
    often = said(before, given(eval_every=1) | {"optimizer": cosine})
    other = "the same bits of the model, but another best step"
    assert f"{other}: up to step 4 the best step was looked for with eval.every=2" in often
    ended = said(given(train_steps=3) | {"optimizer": cosine}, longer, made=3)
    assert ended.endswith(f"{other}: at step 3 the run of 3 steps was judged, at its end")
    assert said(given(train_steps=4) | {"optimizer": cosine}, longer, made=4).endswith(same)
    early = given(eval_every=1, eval_patience=2) | {"optimizer": cosine}
    patient = given(eval_patience=2) | {"optimizer": cosine}
    assert "not the same bits: up to step 4 the best step was looked" in said(patient, early)
    split = types.SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 1})
    assert "not the same bits: mesh {'data': 1, 'fsdp': 1" in said(before, before, 4, split)


def test_a_checkpoint_without_a_history_has_what_its_config_says(task_run):
    place = task_run / "run" / "checkpoints" / "step_00000002"
    record = Manifest.read(place)
    ((first, then),) = record.extra["history"]
    now = then | {"total_steps": 9}
    bare = dataclasses.replace(record, extra={})
    unknown = then | {"code": then["code"] | {"flaxlm": None}}
    assert first == 0 and history.of(bare, place, now, 40) == [[0, unknown]]
    assert history.of(record, place, now, 40) == [[0, then]]


def test_other_code_is_not_promised_to_compute_the_same(task_run):
    """Neither other files of the package nor other libraries, nor code that is not known."""
    record = Manifest.read(task_run / "run" / "checkpoints" / "step_00000002")
    ((_, now),) = record.extra["history"]
    config = from_dict(tiny.recipe("causal", eval={"split": ""}))

    def said(**changed):
        then = {**now, "code": now["code"] | changed}
        return history.promise([[0, then]], 2, now, config)

    assert now["code"]["flax"] == flax.__version__ and said().endswith("as if never interrupted")
    only = "same data order, and the same bits only if other code computes the same: "
    for changed in ({"flaxlm": "0123456789ab"}, {"flaxlm": None}, {"optax": "0.0.1"}):
        ((name, before),) = changed.items()
        assert said(**changed) == f"{only}{name} {before!r} → {now['code'][name]!r}"
    unknown = {name: value for name, value in now.items() if name != "code"}
    assert f"{only}flaxlm None → " in history.promise([[0, unknown]], 2, now, config)


def test_a_line_of_code_changes_its_digest(monkeypatch, tmp_path):
    shutil.copytree(pathlib.Path(flaxlm.__file__).parent, tmp_path / "flaxlm")
    here = manifest.code()
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "flaxlm" / "training" / "manifest.py"))
    before = manifest.code.__wrapped__()
    with (tmp_path / "flaxlm" / "training" / "optimizer.py").open("a") as file:
        file.write("\n")
    after = manifest.code.__wrapped__()
    assert before == here and before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["training/optimizer.py"]


def test_what_changed_twice_is_remembered():
    """A run that went to another machine and back has not the bits of one that stayed."""
    config = from_dict(tiny.recipe("causal", eval={"split": ""}))
    mesh = types.SimpleNamespace(shape={"data": 1})
    here = history.facts(config, mesh, 4)
    there = here | {"machine": here["machine"] | {"cores": 999}}
    parts = history.extended(history.extended([[0, here]], 2, there), 3, here)
    assert [first for first, _ in parts] == [0, 2, 3]
    line = history.promise(parts, 4, here, config)
    assert "not the same bits: cores 999 → " in line and "(up to step 3)" in line
    assert history.extended(parts, 4, here) == parts
    assert history.promise([], 0, here, config).endswith("as if never interrupted")
    assert history.extended(parts, 2, here) == parts[:1]  # from an older checkpoint
