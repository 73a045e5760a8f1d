"""Zero-shot tasks on run directories: one command, the same answers on any devices, and through
lm-evaluation-harness.
"""

import json
import random
import types

import hf_cases
import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from command_line import CommandLine
from hf_cases import CASES
from tokenizers import models, pre_tokenizers

from flaxlm import lm_eval_adapter, sharding
from flaxlm.commands import convert
from flaxlm.errors import ConfigError
from flaxlm.evaluation.evaluate import evaluate_split, rank
from flaxlm.inference import likelihood
from flaxlm.interop.pretrained import Directory
from flaxlm.lm_eval_adapter import FlaxLM
from flaxlm.training import config as run_config
from flaxlm.training.opened import INIT, load_params
from flaxlm.training.program import make_program

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = "the cat sat on a mat dog ran to red sea was calm and grey".split()


TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {path}}}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
  - metric: acc_mutual_info
"""


def directory(root, name):
    """Return a directory with a GPT-2 over bytes (`gpt2`) or a BERT over letters (`bert`)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, ".", *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    head, size = {"gpt2": ("lm", 257), "bert": ("mlm", len(set(pieces)))}[name]
    sizes = {"gpt2": {"n_positions": 64, "n_layer": 2}, "bert": {"max_position_embeddings": 64}}
    model = hf_cases.torch_model(CASES[name], head, vocab_size=size, **sizes[name])
    model.save_pretrained(root / name)
    if name == "bert":
        (root / name / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)))
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet])}
        tokenizers.Tokenizer(models.BPE(vocabulary, [])).model.save(str(root / name))
    return root / name


def write(path, rows):
    """Return the path of a JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def choices(path, count=24, seed=0):
    """Return a file of multiple choice; the sixth context is too long for 64 positions."""
    draw = random.Random(seed)

    def words(most):
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    rows = []
    for number in range(count):
        context = "sea " * 30 + "cat" if number == 5 else words(4)
        row = {"context": context, "choices": [words(3) for _ in range(3)]}
        rows.append(row | {"gold": draw.randrange(3)})
    return write(path, rows)


def pairs(path, count=20, seed=0):
    """Return a file of minimal pairs."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=4)
        rows.append({"good": " ".join(words), "bad": " ".join(words[::-1]), "kind": words[0][0]})
    return write(path, rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a directory with two models, a run of one of them, and files for tasks."""
    root = tmp_path_factory.mktemp("zero_shot")
    for name in ("gpt2", "bert"):
        directory(root, name)
    convert.import_run(f"hf:{root / 'gpt2'}", root / "run", "float32", "")
    choices(root / "choices.jsonl")
    pairs(root / "pairs.jsonl")
    (root / "text.txt").write_text("the sea was calm and grey. " * 9)
    return root


@pytest.fixture(scope="module")
def run(root, compilation_cache):
    return CommandLine(root, cwd=root)


def evaluate(run, workdir, task, *overrides):
    """Return {metric: score} and the predictions of one command."""
    arguments = [f"--config.task.name={task}", *overrides]
    done = run("evaluate", f"--workdir={workdir}", *arguments)
    assert done.code == 0, done.err
    where = run.directory / workdir.replace("hf:", "runs/hf-") / "evaluations" / task
    scores = json.loads((where / "scores.json").read_text())
    lines = (where / "predictions.jsonl").read_text().splitlines()
    assert f"{task}/examples" in done.out and (where / "errors.txt").exists()
    return scores, [json.loads(line) for line in lines]


def test_one_command_ranks_on_a_run_and_on_a_hugging_face_directory(run, root):
    norms = "('characters','tokens','bytes','unconditional')"
    options = ["--config.data.path=choices.jsonl", f"--config.task.normalize={norms}"]
    scores, rows = evaluate(run, "run", "multiple_choice", *options)
    assert evaluate(run, "hf:gpt2", "multiple_choice", *options) == (scores, rows)
    given = [json.loads(line) for line in (root / "choices.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"choices.jsonl:{n + 1}" for n in range(24)]
    assert [row["gold"] for row in rows] == [row["gold"] for row in given]
    for norm in ("acc", "acc_norm", "acc_tokens", "acc_bytes", "acc_uncond"):
        right = np.mean([row["prediction"][norm] == row["gold"] for row in rows])
        assert scores[norm] == pytest.approx(right)
        assert scores[f"{norm}_low"] <= right <= scores[f"{norm}_high"]
    assert (scores["examples"], scores["cut"]) == (24, 1)  # one context did not fit


def test_a_schema_is_solved_by_what_follows_each_context(run, root):
    draw, rows = random.Random(1), []
    for _ in range(12):
        contexts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(2)]
        contexts[1] += "  " * draw.randint(0, 1)  # blanks that go over to what follows
        tail = " ".join(draw.choices(WORDS, k=3))
        rows.append({"contexts": contexts, "continuation": tail, "gold": draw.randrange(2)})
    write(root / "schema.jsonl", rows)
    scores, said = evaluate(run, "hf:gpt2", "schema", "--config.data.path=schema.jsonl")
    model = transformers.GPT2LMHeadModel.from_pretrained(root / "gpt2").eval()
    encode = Directory(f"hf:{root / 'gpt2'}").tokenizer().encode
    right = 0
    for row, answer in zip(rows, said, strict=True):
        totals = []
        for context in row["contexts"]:
            bare = context.rstrip()
            ids = [0, *encode(f"{context} {row['continuation']}")]
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            places = range(1 + len(encode(bare)), len(ids))
            totals.append(sum(logs[place - 1, ids[place]].item() for place in places))
        assert answer["prediction"] == int(np.argmax(totals))
        right += answer["prediction"] == row["gold"]
        assert answer["score"] == pytest.approx(
            1 / (1 + np.exp(min(totals) - max(totals))), rel=1e-4
        )
    assert scores["acc"] == pytest.approx(right / 12) and scores["examples"] == 12


def test_every_model_has_its_way_of_reading(run, root):
    options = ["--config.data.path=pairs.jsonl", "--config.task.group_columns=('kind',)"]
    scores, rows = evaluate(run, "hf:bert", "minimal_pairs", *options)
    assert scores["acc"] == np.mean([row["prediction"] == "good" for row in rows])
    assert {"acc/kind=t", "acc/kind=s"} < set(scores) and scores["examples"] == 20
    options = ["--config.task.window=16", "--config.task.stride=4", "--config.data.path=text.txt"]
    scores, _ = evaluate(run, "run", "perplexity", *options)
    assert scores["tokens"] == len("the sea was calm and grey. " * 9) and scores["cut"] == 0
    assert scores["bits_per_byte"] == pytest.approx(np.log2(scores["perplexity"]))


def test_what_cannot_be_done_is_said_in_a_line(run, root):
    train = run(
        "train", "--workdir=new", "--config=run/config.json", "--config.train.steps=1",
        "--config.task.name=multiple_choice", "--config.data.path=choices.jsonl",
    )  # fmt: skip
    assert train.code == 2 and "nothing is trained for task.name='multiple_choice'" in train.err
    task = ["--config.task.name=perplexity", "--config.data.path=text.txt"]
    masked = run("evaluate", "--workdir=hf:bert", *task)
    assert masked.code == 2 and "it works on: decoder, recurrent" in masked.err
    task = ["--config.task.name=minimal_pairs", "--config.data.path=choices.jsonl"]
    columns = run("evaluate", "--workdir=run", *task)
    assert columns.code == 65 and "choices.jsonl, line 1: there is no column 'good'" in columns.err


def test_a_zero_shot_task_leaves_the_data_of_its_run_behind():
    trained = {"path": "a.jsonl", "split": "file", "valid_path": "b.jsonl"}
    recipe = {"data": trained, "train": {"epochs": 1.0}}
    run_config.choose_task(recipe, "hellaswag")
    recipe["data"]["path"] = "val.jsonl"
    data = run_config.from_dict(recipe).data
    assert (data.path, data.split, data.valid_path) == ("val.jsonl", "whole", "")
    # Whatever a run was trained to do, it may be asked.
    for objective in ({"name": "text_to_text"}, {"name": "classification", "labels": ("a", "b")}):
        run_config.from_dict(recipe | {"objective": objective})


@pytest.mark.parametrize("name, task", [("gpt2", "multiple_choice"), ("bert", "minimal_pairs")])
def test_answers_are_the_same_on_any_devices_and_at_any_batch_size(root, name, task):
    init = f"hf:{root / name}"
    recipe = run_config.read_run(init) | {"init": init}
    run_config.choose_task(recipe, task)
    recipe["data"]["path"] = str(
        root / f"{task.rpartition('_')[2].replace('choice', 'choices')}.jsonl"
    )
    tokenizer, found = Directory(init).tokenizer(), []
    for devices, size in ((1, 1), (1, 64), (8, 7)):
        config = run_config.from_dict(recipe | {"eval": {"batch_size": size}})
        examples = config.task.examples(config.data, "valid")
        inputs = types.SimpleNamespace(examples=lambda split, e=examples: e, tokenizer=tokenizer)
        mesh = sharding.make_mesh(config.sharding, jax.devices()[:devices])
        program = make_program(config, mesh)
        with program.mesh():
            params, _ = load_params(program, root, INIT)
            found.append(evaluate_split(program, params, inputs, "valid", full=True))
    for other in found[1:]:
        assert other.scores == found[0].scores and len(other.answers) == len(examples)
        for ours, theirs in zip(other.answers, found[0].answers, strict=True):
            assert ours.value == theirs.value and ours.score == theirs.score
            np.testing.assert_array_equal(ours.scores, theirs.scores)


@pytest.fixture(scope="module")
def model(root):
    return FlaxLM(str(root / "run"))


def asked(*arguments):
    return [types.SimpleNamespace(args=a) for a in arguments]


def test_a_local_task_of_the_harness_scores_what_ours_does(root, model, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "local_choice.yaml").write_text(
        TASK.format(path=root / "choices.jsonl", cache=tmp_path / "cache")
    )
    found = {}

    def command_line():  # what `main` hands over to, without the thousands of tasks it would index
        import lm_eval
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        for name, source in (("run", root / "run"), ("hf", f"hf:{root / 'gpt2'}")):
            given = f"workdir={source}"
            options = {"tasks": ["local_choice"], "task_manager": manager, "bootstrap_iters": 0}
            result = lm_eval.simple_evaluate(model="flaxlm", model_args=given, **options)
            found[name] = result["results"]["local_choice"]

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", command_line)
    assert lm_eval_adapter.main() == 0
    recipe = run_config.read_run(str(root / "run"))
    run_config.choose_task(recipe, "multiple_choice")
    recipe["data"]["path"] = str(root / "choices.jsonl")
    recipe["task"]["normalize"] = ("characters", "bytes", "unconditional")
    config = run_config.from_dict(recipe)
    examples = config.task.examples(config.data, "valid")
    inputs = types.SimpleNamespace(examples=lambda split: examples, tokenizer=model.tokenizer)
    program = make_program(config, model.model.mesh)
    ours = rank(program, model.model.params, inputs, "valid", "", False).scores
    names = {"acc": "acc", "acc_norm": "acc_norm", "acc_bytes": "acc_bytes",
             "acc_mutual_info": "acc_uncond"}  # fmt: skip
    for theirs, name in names.items():
        assert found["run"][f"{theirs},none"] == found["hf"][f"{theirs},none"] == ours[name]
    assert len({ours[name] for name in names.values()}) > 1 and ours["cut"] == 1


def test_likelihoods_begin_as_asked_for(root, model):
    pairs = [("the cat", " sat"), ("", "dog"), ("the  ", "mat")]
    bare = FlaxLM(f"hf:{root / 'gpt2'}", add_bos_token=False)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(root / "gpt2").eval()
    encode = model.tokenizer.encode
    for lm, begin in ((model, [0]), (bare, [])):
        for (context, text), (nats, greedy) in zip(
            pairs, lm.loglikelihood(asked(*pairs)), strict=True
        ):
            before = encode(context.rstrip())
            ids = [*(begin or ([] if before else [0])), *encode(context + text)]
            first = len(ids) - len(encode(context + text)) + len(before)
            with torch.no_grad():
                rows = theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            values = [rows[p - 1, ids[p]].item() for p in range(first, len(ids))]
            assert nats == pytest.approx(sum(values), abs=1e-4)
            best = [rows[p - 1].argmax().item() == ids[p] for p in range(first, len(ids))]
            assert greedy == all(best)


def test_rolling_and_generation_are_those_of_the_model(root, model):
    texts = ["the sea was calm and grey. " * 5, "cat"]
    rolled = model.loglikelihood_rolling(asked(*((text,) for text in texts)))
    assert model.limit == 64
    own = likelihood.rolling(model.model, texts, window=64)
    np.testing.assert_array_equal(rolled, -own)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(root / "gpt2").eval()
    new, given = 8, []
    for context in ("the cat sat on a mat and a dog ran to", "sea " * 40):
        # The beginning is cut where the model has no room for it and for what it writes.
        ids = [0, *model.tokenizer.encode(context)][-(64 - new + 1) :]
        begin = len(ids)
        for _ in range(new):
            with torch.no_grad():
                ids.append(theirs(torch.tensor([ids])).logits[0, -1].argmax().item())
        text = model.tokenizer.decode(ids[begin:])
        given += [(context, [], text), (context, [text[3:5]], text[: text.index(text[3:5])])]
    made = model.generate_until(
        asked(*((c, {"until": stop, "max_gen_toks": new}) for c, stop, _ in given))
    )
    assert made == [text for *_, text in given]
    with pytest.raises(ConfigError, match="generation_kwargs num_beams: flaxlm has until"):
        model.generate_until(asked(("a", {"num_beams": 4})))
