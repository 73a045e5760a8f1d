"""Figures of other data are not taken for a run's own, and what cannot be read is not kept."""

import json
import shutil
import zipfile

import pytest
import tokenizers
from resume_cases import table, task_recipe

from flaxlm.commands.evaluate import evaluate
from flaxlm.data import cache, hugging_face
from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import TokenizerConfig
from flaxlm.errors import StorageError
from flaxlm.train import train
from flaxlm.training import workdir
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.config import from_dict
from flaxlm.training.workdir import Workdir, probe

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def judged(task_run, tmp_path):
    """Return a copy of a folder with a run on tables, and its config."""
    here = tmp_path / "here"
    shutil.copytree(task_run, here)
    return here, from_dict(task_recipe(here))


def figures(run) -> dict:
    names = ("result.json", "evaluations/classification-valid/scores.json")
    return {name: json.loads((run / name).read_text()) for name in names}


@pytest.mark.parametrize("way", ["another file", "the file was changed"])
def test_figures_of_other_data_are_told_and_made_again_by_the_next_start(judged, way, capfd):
    here, config = judged
    train(config, here / "run")
    before, own = figures(here / "run"), (here / "b.jsonl").read_bytes()
    other = here / ("b.jsonl" if way == "the file was changed" else "c.jsonl")
    table(other, 7)
    recipe = task_recipe(here)
    recipe["data"]["valid_path"] = str(other)
    with pytest.warns(UserWarning, match="valid split is not what the run was judged by .*jsonl"):
        evaluate(from_dict(recipe), here / "run", "valid", "")
    assert figures(here / "run") != before
    (here / "b.jsonl").write_bytes(own)
    capfd.readouterr()
    train(config, here / "run")
    said = capfd.readouterr().err
    assert "made what was not there: evaluations/classification-valid" in said
    assert figures(here / "run") == before
    train(config, here / "run")
    assert "nothing to do" in capfd.readouterr().err


def test_another_file_that_is_scored_whole_has_names_of_its_own(judged, recwarn):
    here, config = judged
    train(config, here / "run")
    before = figures(here / "run")
    table(here / "c.jsonl", 7)
    recipe = task_recipe(here, data={"path": str(here / "c.jsonl"), "split": "whole"})
    evaluate(from_dict(recipe), here / "run", "valid", "")
    assert not any("judged by" in str(warning.message) for warning in recwarn)
    assert figures(here / "run") == before
    assert (here / "run" / "evaluations" / "classification" / "scores.json").exists()


def test_a_report_that_does_not_say_what_it_is_of_counts_by_its_step(judged, capfd):
    """As those of earlier versions."""
    from flaxlm import files
    from flaxlm.evaluation import compare

    here, config = judged
    train(config, here / "run")
    report = here / "run" / "evaluations" / "classification-valid"
    told = json.loads((report / "scores.json").read_text())
    assert told.pop("judged")
    (report / "scores.json").write_text(json.dumps(told))
    made = sorted(path for path in report.iterdir() if path.name != compare.SUMS)
    sums = "".join(f"{files.sha256(path)}  {path.name}\n" for path in made)
    (report / compare.SUMS).write_text(sums)
    capfd.readouterr()
    train(config, here / "run")
    assert "nothing to do" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["gs:/bucket/run", "s3:/a/b", "a/https:/x", "hub:1/a"])
def test_a_bucket_is_not_taken_for_a_folder_of_its_name(name, tmp_path):
    if name == "hub:1/a":
        return workdir.check_path(tmp_path / name)
    with pytest.raises(StorageError, match="names a bucket or a URL"):
        Workdir(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run[1]", "a\\b", "caf\udce9"])
def test_a_path_that_the_array_store_cannot_write_in_is_refused_first(judged, tmp_path, name):
    _, config = judged
    with pytest.raises(StorageError, match="checkpoints cannot be written where a path has"):
        train(config, tmp_path / name)
    assert not (tmp_path / name).exists()
    with pytest.raises(StorageError, match="checkpoints cannot be written"):
        Checkpointer(tmp_path / name)
    probe(tmp_path / name)  # what others write goes there


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def head(path) -> None:
    path.write_bytes(bytes(40) + path.read_bytes()[40:])


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip, head, cut])
def test_a_damaged_part_of_a_tokenization_that_was_killed_is_made_again(
    tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(cache, "PART_CHARS", 4000)
    (tmp_path / "text.txt").write_text("".join(f"Day {n}: calm sea.\n\n" for n in range(900)))
    data = DataConfig(path=str(tmp_path / "text.txt"), document="paragraph", workers=1)

    def tokens(workdir, fail=False):
        with monkeypatch.context() as patch:
            if fail:
                patch.setattr(cache, "_assemble", lambda *_: 1 / 0)
            _, (made,) = cache.prepare(data, TokenizerConfig(kind="byte"), workdir)
        return {path.name: path.read_bytes() for path in made.iterdir() if path.suffix == ".npy"}

    with pytest.raises(ZeroDivisionError):
        tokens(tmp_path / "killed", fail=True)
    parts = sorted((tmp_path / "killed").rglob("*.npz"))
    assert len(parts) > 2 and zipfile.is_zipfile(parts[1])
    damage(parts[1])
    assert tokens(tmp_path / "killed") == tokens(tmp_path / "whole") != {}


def test_the_pieces_of_a_text_are_a_function_of_the_text():
    """BPE dropout, which a tokenizer.json may ask for, draws others at each call."""
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", "a", "b", "ab", "abab"])}
    merges = [("a", "b"), ("ab", "ab")]
    model = tokenizers.models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", dropout=0.5)
    library = hugging_face._library(tokenizers.Tokenizer(model).to_str().encode(), "a file")
    assert {tuple(library.encode("abab").ids) for _ in range(50)} == {(4,)}
