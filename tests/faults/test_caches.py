"""A token cache that is not what was written is exit 65, whatever was damaged and however large."""

import json
import os
import pathlib
import shutil
import types

import datasets
import numpy as np
import pytest
import tiny_runs as tiny
from command_line import CommandLine

from flaxlm.data import cache, shards, verified
from flaxlm.data.order import ConcatPlan
from flaxlm.data.pipeline import Batches, EvalBatches, loader
from flaxlm.data.sources import DataConfig, source_files
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer
from flaxlm.errors import DataError
from flaxlm.objectives import OBJECTIVES

SHARD = "train.tokens-00000.bin"


def quiet(line):
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a folder with a text whose cache has shards above SMALL, and its config."""
    root = tmp_path_factory.mktemp("corpus")
    lines = (
        f"{n} the sea was grey and we rowed to a green island, so far\n\n" for n in range(30000)
    )
    (root / "text.txt").write_text("".join(lines))
    config = DataConfig(path=str(root / "text.txt"), document="paragraph", workers=1)
    made = prepare(config, root / "run")
    assert (made / SHARD).stat().st_size > 2 * shards.SMALL
    return root, config


def prepare(config, workdir) -> pathlib.Path:
    return cache.prepare(config, TokenizerConfig(kind="byte"), workdir, quiet)[1][0]


@pytest.fixture
def made(corpus, tmp_path, monkeypatch):
    """Return the config and the cache of a copy, verified on this machine."""
    root, config = corpus
    shutil.copytree(root / "run", tmp_path / "run")
    return config, prepare(config, tmp_path / "run")


def flip(path: pathlib.Path, at: int, times: bool = False) -> None:
    """Change a bit; `times`: and set the times back, as a medium that fails leaves them."""
    entry = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    if times:
        os.utime(path, ns=(entry.st_atime_ns, entry.st_mtime_ns))


@pytest.fixture
def read(monkeypatch):
    """Return the names of the files that were read whole."""
    names = []
    once = verified.Verified.read

    def watched(self, path, progress=lambda count: None):
        names.append(pathlib.Path(path).name)
        return once(self, path, progress)

    monkeypatch.setattr(verified.Verified, "read", watched)
    return names


@pytest.mark.parametrize("at", [0, 700_001, -1])
@pytest.mark.parametrize("times", [False, True])
def test_a_flip_in_a_large_shard_is_found_at_the_next_opening(at, times, made):
    config, place = made
    path = place / SHARD
    flip(path, at % path.stat().st_size, times)
    with pytest.raises(DataError, match=f"{path} does not match its manifest; delete {place} and"):
        prepare(config, place.parents[1])


def test_all_is_read_once_on_a_machine_and_samples_from_then_on(made, read, tmp_path, monkeypatch):
    config, place = made
    run = place.parents[1]
    prepare(config, run)
    assert read == []
    prepare(DataConfig(**(vars(config) | {"verify": True})), run)  # on demand
    assert SHARD in read and "text.txt" not in read
    # What was written down counts neither for a copy nor on another machine, nor broken off.
    (marker,) = place.parent.glob(".*.verified-*.json")
    contents = marker.read_text()
    shutil.copytree(run, tmp_path / "copy", copy_function=shutil.copy2)
    for workdir, machine, text in (
        (tmp_path / "copy", verified.machine(), contents),
        (run, "elsewhere", contents),
        (run, verified.machine(), contents[:-9]),
        (run, verified.machine(), "[]"),
        (run, verified.machine(), contents.replace('"format": 1', '"format": 0')),
    ):
        monkeypatch.setattr(verified, "machine", lambda machine=machine: machine)
        marker.write_text(text)
        for again in (False, True):
            read.clear()
            prepare(config, workdir)
            assert (SHARD in read) != again
    os.utime(place / SHARD)
    read.clear()
    prepare(config, run)
    assert read == [SHARD]


def test_a_medium_that_fails_is_found_by_samples(made, monkeypatch):
    """The file looks untouched; a block of it is not what it was."""
    config, place = made
    monkeypatch.setattr(verified, "_stat", lambda path: [0])
    prepare(config, place.parents[1])
    flip(place / SHARD, 1_000_000)
    with pytest.raises(DataError, match=f"{SHARD} does not match"):
        prepare(config, place.parents[1])  # of so small a cache every block is a sample


def test_what_was_verified_need_not_be_written_down(made, read, monkeypatch):
    """As where the cache lies read-only: it is verified all the same, at each start."""
    config, place = made
    for marker in place.parent.glob(".*.verified-*"):
        marker.unlink()

    def full(path, contents):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(verified.files, "replace", full)
    for _ in range(2):
        read.clear()
        prepare(config, place.parents[1])
        assert SHARD in read
    flip(place / SHARD, 5)
    with pytest.raises(DataError, match=f"{SHARD} does not match"):
        prepare(config, place.parents[1])


def resigned(place: pathlib.Path, name: str, change) -> None:
    """Change a file and write a manifest that fits it, as who made the cache wrongly would."""
    path = place / name
    change(path)
    manifest = json.loads((place / "manifest.json").read_text())
    facts = {"bytes": path.stat().st_size, "sha256": shards.files.sha256(path)}
    manifest["files"][name] = facts
    shards.write_manifest(place, {k: v for k, v in manifest.items() if k != "digest"})


def put(place: int, value: int):
    """Return what writes an id, or an offset, at a place of a file."""

    def change(path):
        if path.suffix == ".bin":
            array = np.memmap(path, np.uint16, "r+")
        else:
            array = np.load(path, mmap_mode="r+")
        array[place] = value
        array.flush()

    return change


def test_an_id_that_nobody_has_names_shard_and_row(made):
    config, place = made
    offsets = np.load(place / "train.documents.npy")
    at = int(offsets[777]) + 3
    resigned(place, SHARD, put(at, 60_000))
    opened = shards.open_cache(prepare(config, place.parents[1]), "train")
    message = (f"{SHARD} has the id 60000 at token {at:,} (row 777 of the train split), and the "
               "tokenizer has 361")  # fmt: skip
    for kind, shuffle in ((Batches, True), (EvalBatches, False)):
        plan = ConcatPlan(opened, 64, seed=0, shuffle=shuffle)
        objective, tokenizer = OBJECTIVES["causal_lm"](), types.SimpleNamespace(vocab_size=361)
        batches = kind(plan, objective, tokenizer, 64, 0, 128)
        with pytest.raises(DataError, match=r"row [\d,]+ of the data's order: .*") as caught:
            for _ in loader(batches, 0, plan.num_rows // 128 + 2):
                pass
        assert message in str(caught.value)
    with pytest.raises(DataError) as caught:
        opened.take(np.arange(at - 2, at + 2))
    assert message in str(caught.value)


OFFSETS = {
    "falls": put(5, 0),
    "beyond the end": put(-1, 1 << 40),
    "negative": put(0, -4),
    "no array": lambda path: path.write_bytes(b"\x93NUMPY" + bytes(60)),
    "other numbers": lambda path: np.save(path, np.load(path).astype(np.float32)),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_that_do_not_rise_to_the_end_are_refused(case, made):
    config, place = made
    resigned(place, "train.documents.npy", OFFSETS[case])
    with pytest.raises(DataError, match=r"train.documents.npy is (not|no array of) offsets"):
        shards.open_cache(prepare(config, place.parents[1]), "train")


def test_every_verb_that_reads_a_cache_says_65(corpus, tmp_path, compilation_cache):
    """`tokenize`, `train`, `evaluate` and `inspect`; two that verify at once wait for nobody."""
    _, config = corpus
    line, run = CommandLine(tmp_path, cwd=tmp_path), tmp_path / "run"
    recipe = tiny.recipe(
        "causal",
        data={"path": config.path, "document": "paragraph", "workers": 1},
        model={"vocab_size": 281} | tiny.QUICK,
        train={"steps": 1},
        eval={"split": ""},
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    given = ["--config=recipe.json", f"--workdir={run}"]
    done = line("train", *given)
    assert done.code == 0, done.err
    (shard,) = run.glob(f"cache/*/{SHARD}")
    for marker in shard.parents[1].glob(".*.verified-*"):
        marker.unlink()
    both = line.together([["inspect", f"--workdir={run}"]] * 2)
    assert [done.code for done in both] == [0, 0], both
    assert len(list(shard.parents[1].glob(".*.verified-*"))) == 1
    flip(shard, 1_234_567, times=True)
    for verb in (["train", *given, "--config.train.steps=2"], ["inspect", f"--workdir={run}"],
                 ["tokenize", f"--workdir={run}", "--config.data.verify=True"],
                 ["evaluate", f"--workdir={run}"]):  # fmt: skip
        done = line(*verb)
        assert done.code == 65 and done.errors, (verb, done.err)
        assert f"{shard} does not match its manifest" in done.errors[0]
    done = line("generate", f"--workdir={run}", "--prompt=a", "--config.data.verify=True")
    assert done.code == 2 and "would have no effect in generate" in done.errors[0]


def test_a_file_whose_name_is_not_utf_8_is_opened_again(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.txt")
    pathlib.Path(name).write_text("\n\n".join(f"row {i} of the text" for i in range(99)))
    config = DataConfig(path=name, document="paragraph", workers=1)
    made = prepare(config, tmp_path / "run")
    assert prepare(config, tmp_path / "run") == made
    assert shards.read_manifest(made)["source"]["files"][0]["path"] == name


def test_what_the_datasets_library_keeps_of_computations_is_no_data(tmp_path):
    datasets.Dataset.from_dict({"text": ["a b"] * 99}).save_to_disk(tmp_path / "set")
    config = DataConfig(path=str(tmp_path / "set"), valid_fraction=0.0, workers=1)
    made, names = prepare(config, tmp_path / "run"), source_files(config)
    (tmp_path / "set" / "cache-0123456789abcdef.arrow").write_bytes(b"computed elsewhere")
    assert source_files(config) == names
    assert cache._current(made, config, load_tokenizer(tmp_path / "run" / "tokenizer"))
    assert prepare(config, tmp_path / "run") == made
