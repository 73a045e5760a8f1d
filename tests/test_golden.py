"""Run directories that an earlier version wrote open as they were; see `golden/make.py`."""

import json
import pathlib
import shutil

import pytest
import tiny_runs as tiny

import flaxlm
from flaxlm import tree
from flaxlm.commands import evaluate, inspect
from flaxlm.train import train
from flaxlm.training import config as run_config

GOLDEN = pathlib.Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
EXACT = ("step", "model", "objective", "parameters", "tokenizer/hash")
EXACT += ("digest/params", "digest/opt_state", "digest/next_batch")


@pytest.fixture(scope="module", params=EXPECTED)
def run(request, tmp_path_factory, compilation_cache):
    """Return (name, the recipe that stands in a run, a copy of the run), within the folder."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    shutil.copytree(GOLDEN / request.param, workdir)
    with pytest.MonkeyPatch.context() as patch, tiny.one_device():
        patch.chdir(GOLDEN)  # the paths of data and `init` are relative to it
        yield request.param, run_config.read_run(str(workdir)), workdir


def test_it_holds_what_was_written_bit_by_bit(run):
    name, recipe, workdir = run
    facts = inspect.inspect(run_config.from_dict(recipe), workdir, "latest")
    assert facts == {key: EXPECTED[name][key] for key in EXACT}
    model = flaxlm.load(workdir)
    assert model.tokenizer.hash.startswith(EXPECTED[name]["tokenizer/hash"])
    if name in ("encoder", "decoder", "encoder_decoder"):  # nothing is averaged or merged
        assert tree.digest_of(model.params) == EXPECTED[name]["digest/params"]


def test_it_scores_as_it_did(run):
    """Other instruction sets round otherwise: 1e-4 of a loss is ten times what that gives."""
    name, recipe, workdir = run
    scores = evaluate.evaluate(run_config.from_dict(recipe), workdir, "valid", "")
    assert scores["valid/loss"] == pytest.approx(EXPECTED[name]["valid/loss"], rel=1e-4)
    counts = {key: value for key, value in EXPECTED[name].items() if key.endswith("/tokens")}
    assert counts.items() <= scores.items()


def test_it_goes_on_from_its_last_step(run, capfd):
    name, recipe, workdir = run
    recipe["train"]["steps"] += 1
    result = train(run_config.from_dict(recipe), workdir)
    assert f"resuming from step {EXPECTED[name]['step']}: " in capfd.readouterr().err
    assert result["step"] == EXPECTED[name]["step"] + 1
    rows = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert rows == list(range(1, result["step"] + 1))


def test_the_folder_stays_small():
    for name in EXPECTED:
        files = [path for path in (GOLDEN / name).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 200_000, name
