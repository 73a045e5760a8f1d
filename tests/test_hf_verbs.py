"""Hugging Face models under the verbs: read in place of a run, started from, and written back."""

import json

import hf_cases
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from hf_cases import CASES
from tokenizers import models, pre_tokenizers

import flaxlm
from flaxlm import __main__ as command
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.inference.generate import GenerateConfig, generate

TEXT = "the cat sat on the mat. a dog ran to the cat; the mat was red.\n\n" * 40
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def good(done):
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return directories with tokenizers: a BERT with its MLM head, a GPT-2, a T5 over bytes."""
    root = tmp_path_factory.mktemp("hub")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, ".", ";", *LETTERS, *(f"##{letter}" for letter in LETTERS), "the"]
    for name, head, vocab in (("bert", "mlm", len(pieces)), ("gpt2", "lm", 257)):
        model = hf_cases.torch_model(CASES[name], head, vocab_size=vocab)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        model.save_pretrained(root / name)
    (root / "bert" / "vocab.txt").write_text("\n".join(pieces))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet])}
    tokenizers.Tokenizer(models.BPE(vocabulary, [])).model.save(str(root / "gpt2"))
    hf_cases.torch_model(CASES["byt5"], "lm").save_pretrained(root / "byt5")
    config = {"tokenizer_class": "ByT5Tokenizer"}
    (root / "byt5" / "tokenizer_config.json").write_text(json.dumps(config))
    (root / "text.txt").write_text(TEXT)
    rows = [{"text": f"the {a} {b}", "label": b} for a in LETTERS for b in ("cat", "dog")]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


RECIPE = """
def get_config(arg=""):
    return dict(
        data=dict(path="{root}/text.txt", split="tail", valid_fraction=0.2),
        objective=dict(name=arg),
        optimizer=dict(learning_rate=1e-3, schedule="constant"),
        train=dict(steps=3, batch_size=8, length=16, log_every=1),
    )
"""


@pytest.mark.parametrize("name", ["bert", "gpt2", "byt5"])
def test_there_and_back_is_bit_equal(name, hub, run, tmp_path):
    good(run("convert", f"--from=hf:{hub / name}", f"--to={tmp_path / 'run'}"))
    done = good(run("convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'out'}"))
    theirs = safetensors.numpy.load_file(hub / name / "model.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[key], ours[key]) for key in theirs)
    described = json.loads((hub / name / "config.json").read_text())
    assert described["architectures"][0] in done.out
    before, after = (
        transformers.AutoConfig.from_pretrained(path).to_dict()
        for path in (hub / name, tmp_path / "out")
    )
    kept = ("model_type", "vocab_size", "num_hidden_layers", "hidden_act", "d_kv", "layer_norm_eps")
    assert all(before.get(key) == after.get(key) for key in kept)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    own = load_hugging_face(hub / name)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == own.encode(TEXT)
    again = run("convert", f"--from=hf:{hub / name}", f"--to={tmp_path / 'run'}")
    assert again.code == 77 and "holds a run already" in again.err


@pytest.mark.parametrize(
    "name, objective", [("bert", "masked_lm"), ("gpt2", "causal_lm"), ("byt5", "span_corruption")]
)
def test_pre_training_goes_on_and_is_exported(name, objective, hub, run, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE.format(root=hub))
    config = f"--config={tmp_path / 'recipe.py'}:{objective}"
    nsp = ["--config.objective.nsp=False"] if name == "bert" else []
    train = ["train", config, f"--config.init=hf:{hub / name}", "--config.eval.split=", *nsp]
    done = good(run(*train, f"--workdir={tmp_path / 'run'}"))
    assert "fresh: none" in done.err
    good(run("convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'out'}"))
    kind = getattr(
        transformers, json.loads((hub / name / "config.json").read_text())["architectures"][0]
    )
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    old, moved = kind.from_pretrained(hub / name).state_dict(), 0.0
    for key, value in model.state_dict().items():
        moved = max(moved, float((value - old[key]).abs().max()))
    assert 1e-3 < moved < 1e-2  # three steps of Adam at 1e-3
    if name == "gpt2":
        # Its own files say nothing of BOS; training begins texts with it, and so the export does.
        both = [flaxlm.load(tmp_path / "run"), flaxlm.load(f"hf:{tmp_path / 'out'}")]
        assert not load_hugging_face(hub / name).adds_bos and both[1].tokenizer.adds_bos
        options = GenerateConfig(max_new_tokens=6, temperature=0)
        assert generate(both[0], ["the"], options) == generate(both[1], ["the"], options)
        library = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert library("the")["input_ids"] == [0, *both[0].tokenizer.encode("the")]
        # What was stopped goes on from here, not from the model it began with.
        resumed = good(run(*train, f"--workdir={tmp_path / 'run'}"))
        assert "resuming from step 3" in resumed.err


def test_fine_tuned_classifiers_predict_alike_in_transformers(hub, run, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(root=hub).replace("text.txt", "rows.jsonl"))
    options = [f"--config={recipe}:classification", "--config.task.name=classification"]
    options += ["--config.objective.labels=('cat','dog')", "--config.train.steps=40"]
    options += [f"--config.data.valid_path={hub / 'rows.jsonl'}", "--config.data.split=file"]
    workdir = tmp_path / "run"
    done = good(run("train", *options, f"--config.init=hf:{hub / 'bert'}", f"--workdir={workdir}"))
    assert "fresh: heads/classification/bias, heads/classification/kernel" in done.err
    score = good(run("evaluate", f"--workdir={workdir}"))
    assert json.loads((workdir / "result.json").read_text())["valid/accuracy"] == 1.0, score.out
    good(run("convert", f"--from={workdir}", f"--to=hf:{tmp_path / 'out'}"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "cat", 1: "dog"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [json.loads(line) for line in (hub / "rows.jsonl").read_text().splitlines()]
    read = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(**read).logits.argmax(-1)
    assert [model.config.id2label[int(i)] for i in found] == [row["label"] for row in rows]


def test_a_directory_is_read_where_a_run_is(hub, run, tmp_path, monkeypatch):
    gpt2 = hub / "gpt2"
    done = good(run("inspect", f"--workdir=hf:{gpt2}"))
    assert "GPT2LMHeadModel" in done.out and "heads" in done.out
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(root=hub))
    options = [f"--config={recipe}:causal_lm", f"--workdir=hf:{gpt2}"]
    evaluated = good(run("evaluate", *options, "--split=train"))
    assert "loss" in evaluated.out
    options += ["--prompt=the", "--temperature=0", "--max_new_tokens=8"]
    made = good(run("generate", f"--workdir=hf:{gpt2}", *options[2:]))
    assert made.out.startswith("--- the")
    results = run.directory / "runs" / f"hf-{str(gpt2).strip('/').replace('/', '-')}"
    assert json.loads((results / "generations.jsonl").read_text())["prompt"] == "the"
    refused = run("train", *options[:2])
    assert refused.code == 2 and "--config.init=hf:" in refused.err


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "byt5"])
def test_vectors_are_those_of_torch(name, pooling, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ["the cat sat", "", "dog", "a dog ran to the mat; " * 2]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command.run([
        "embed", f"--workdir=hf:{hub / name}", f"--input={source}", f"--output={target}",
        f"--pooling={pooling}", "--batch_size=2", "--max_tokens=20",
    ])  # fmt: skip
    assert "embed/texts" in capsys.readouterr().out
    found = np.load(target)
    tokenizer = load_hugging_face(hub / name)
    kind = transformers.T5EncoderModel if name == "byt5" else transformers.AutoModel
    model = kind.from_pretrained(hub / name).eval()
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer.encode(text)
        size = len(tokenizer.with_specials([])[0])
        ids = tokenizer.with_specials(ids[: 20 - size])[0] or [tokenizer.bos_id]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        expected = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5 * float(states.abs().max()))


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("embed --workdir=hf:{H}/bert --input={H}/no.jsonl --output=x.npy", 66, "no.jsonl"),
        ("embed --workdir=hf:{H}/bert --input={H}/rows.jsonl", 2, "--output=FILE is required"),
        ("embed --workdir=hf:{H}/bert --input={H}/rows.jsonl --output={H}/text.txt/x.npy", 74,
         "text.txt/x.npy cannot be written"),
        ("embed --workdir=hf:{H}/bert --input={H}/rows.jsonl --output={H}/no/x.npy", 66,
         "mkdir -p"),
        ("embed --workdir=hf:{H}/bert --input={H}/rows.jsonl --output=x --pooling=max", 2,
         "mean, cls, last"),
        ("embed --workdir=hf:{H}/bert --input={H}/rows.jsonl --output=x --max_tokens=99", 2,
         "max_length=24"),
        ("inspect --workdir=hf:{H}/none", 66, "there is no directory"),
        ("generate --workdir=hf:{H}/rows.jsonl --prompt=a", 66, "there is no directory"),
        ("convert --from=hf:{H}/bert", 2, "--to=DIR is required"),
        ("convert --from={H}/a --to={H}/b", 2, "one of them has to be a Hugging Face directory"),
        ("convert --from={H}/a --to=hf:{H}/b", 66, "is not a run directory"),
        ("convert --from=hf:{H}/bert --to=hf:{H}/b --architecture=Bert", 2, "BertForMaskedLM"),
        ("convert --from=hf:{H}/bert --to=hf:{H}/b --architecture=GPT2LMHeadModel", 2, "no known"),
        ("convert --from=hf:{H}/bert --to=hf:{H}/b --dtype=int8", 2, "float32, bfloat16, float16"),
        ("convert --from=hf:{H}/bert --to={H}/b --config.seed=1", 2, "takes the config"),
        ("convert --from=hf:{H}/bert --to=hf:{H}/b --checkpoint=5", 2, "--checkpoint=5 has no"),
        ("convert --from=hf:{H}/bert --to={H}/b --architecture=BertModel", 2, "has no meaning"),
        ("convert --from={H}/a --to=hf:{H}/b --allow_missing=x", 2, "--allow_missing=x has no"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(arguments, code, message, hub, run):
    done = run(*arguments.replace("{H}", str(hub)).split())
    assert (done.code, len(done.errors)) == (code, 1), done.err
    assert message in done.errors[0] and "Traceback" not in done.err
