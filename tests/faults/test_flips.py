"""A flipped bit in any file of a run is refused, said and mended, or changes nothing that is read.

Never is another result given without a word.
"""

import json
import pathlib
import random
import shutil

import fault_recipes
import operations
import pytest
from checkpoint_child import flip
from faults import ALL, differences, facts

FLIPS = 1000 if ALL else 9
SCRIPT = str(pathlib.Path(operations.__file__))
KINDS = {  # of a file of a run, by the part of its path that tells
    "arrays": "/state/",
    "manifest of a checkpoint": "checkpoints/*/manifest.json",
    "config and tokenizer of a checkpoint": "checkpoints/",
    "token cache": "cache/",
    "tokenizer": "tokenizer/",
    "config.json": "config.json",
    "metrics.jsonl": "metrics.jsonl",
    "result.json": "result.json",
    "report": "evaluations/",
}


def kind_of(name: str) -> str:
    """Return the kind of a file of a run."""
    for kind, part in KINDS.items():
        begin, _, end = part.partition("*")
        if begin in name and name.endswith(end):
            return kind
    return "other"


@pytest.fixture(scope="module")
def runs(armed, tmp_path_factory):
    """Return (a place to damage, {a run: (its copy, what is read of it, its files by kind)})."""
    root = tmp_path_factory.mktemp("flips")
    fault_recipes.write_data(root)
    runs, place = {}, root / "place"
    for family in ("lstm", "buckets"):
        done = armed(*fault_recipes.command(family, root, place))
        assert done.code == 0, done.err
        done = armed(SCRIPT, "reading", str(place))
        assert done.code == 0 and not done.err, done.err
        shutil.copytree(place, root / family)
        files: dict[str, list] = {}
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            if path.stat().st_size:
                name = path.relative_to(place).as_posix()
                files.setdefault(kind_of(name), []).append(name)
        runs[family] = root / family, json.loads(done.out), files
        shutil.rmtree(place)
    return place, runs


def mended(armed, command, place, copy) -> str:
    """Start a finished run again, whose result or report is damaged: it is made anew, and said."""
    done = armed(*command)
    assert done.code == 0, done.err
    if "result.json.damaged" in done.err or "made what was not there: result.json" in done.err:
        return "said"
    return "silent" if differences(facts(place), facts(copy)) else "the same"


def outcome(armed, place, wanted) -> str:
    """Read a damaged run as the verbs do; return what came of it: silent is what must not be."""
    done = armed(SCRIPT, "reading", str(place))
    if done.code:
        assert done.code in (2, 65, 66, 74, 77) and len(done.errors) == 1, done.err
        assert "a bug in" not in done.err
        return "refused"
    same = json.loads(done.out) == wanted
    return "said" if done.err else "the same" if same else "silent"


def test_no_flip_is_silent(armed, runs, count):
    place, of = runs
    draw, found = random.Random(0), {}
    for number in range(FLIPS):
        copy, wanted, files = of[("lstm", "buckets")[number % 2]]
        kind = sorted(files)[number // 2 % len(files)]
        name = draw.choice(files[kind])
        shutil.copytree(copy, place)
        bit = draw.randrange(8 * (place / name).stat().st_size)
        flip(place / name, bit)
        if kind == "result.json":
            command = fault_recipes.command(copy.name, copy.parent, place)
            what = mended(armed, command, place, copy)
        else:
            what = outcome(armed, place, wanted)
        shutil.rmtree(place)
        found.setdefault(what, []).append((kind, name, bit))
        count(f"flips: {kind}", **{what: 1, "flips": 1})
    assert not found.get("silent"), found["silent"]
