"""A prompt and what is written after it, as the files of the tokenizer say: BOS, spaces, EOS."""

import json
import warnings

import pytest
import tokenizers
from command_line import CommandLine
from tokenizers import decoders, models, pre_tokenizers, processors

from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.data.vocabulary import ByteTokenizer
from flaxlm.errors import ConfigError
from flaxlm.inference.generate import GenerateConfig, generate
from flaxlm.models import build
from flaxlm.models.config import TransformerConfig
from flaxlm.models.recurrent import RecurrentConfig
from flaxlm.trained import TrainedModel

TEXT = ["the cat sat on a mat and the dog ran to the cat, it's 1,024 metres\n"] * 20
WORDS = {"kind": "bpe", "vocab_size": 330, "sentinels": 8}


@pytest.fixture(scope="module")
def vocabularies(shared, tmp_path_factory):
    """Tokenizers by name: pieces with a space before them, behind them, and whole words."""
    stories = shared("weights/stories260K/hf")
    made = {
        "llama": load_hugging_face(stories),
        "wordpiece": load_hugging_face(shared("weights/vocab/bert-base-uncased")),
        "gpt2": load_hugging_face(shared("weights/vocab/gpt2")),
        "own": train_tokenizer(TokenizerConfig(**WORDS), TEXT),
        "byte": ByteTokenizer(0),
    }
    return made


@pytest.mark.parametrize(
    "text",
    [
        "The cat and a boy",
        "Once upon a time, there was",
        "it's unaffable, isn't it? walking",
        "żółć",
    ],
)
@pytest.mark.parametrize("name", ["llama", "wordpiece", "gpt2", "own", "byte"])
def test_prompt_and_continuation_are_the_whole_text_wherever_it_is_cut(vocabularies, name, text):
    tokenizer = vocabularies[name]
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    assert len(ids) > 1
    for cut in range(len(ids) + 1):
        before, after = [tokenizer.bos_id, *ids[:cut]], ids[cut:]
        head = tokenizer.decode(before)
        tail = tokenizer.decode_after(before, after)
        # Only a character of which the prompt has a part is written whole by the continuation.
        assert head.rstrip("\ufffd") + tail == whole


def test_what_follows_eos_is_a_text_of_its_own(vocabularies):
    llama = vocabularies["llama"]
    before, after = llama.encode("the cat"), llama.encode("sat")
    assert llama.decode_after(before, after) == " sat"
    assert llama.decode_after([llama.bos_id, *before, llama.eos_id], after) == "sat"
    assert llama.decode_after([llama.bos_id], after) == "sat"  # nothing stands before it


def library(template: str | None) -> tokenizers.Tokenizer:
    """Return a byte-level tokenizer with BOS <s> and EOS </s>, and a template or none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    if template is not None:
        special = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(
            single=template, pair=f"{template} $B", special_tokens=special
        )
    return made


NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
GENERAL = NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA = NAMES | {"tokenizer_class": "LlamaTokenizerFast"}


@pytest.mark.parametrize(
    ("template", "config", "expected"),
    [
        ("<s> $A", GENERAL, True),
        ("$A", GENERAL, False),
        ("$A </s>", GENERAL, False),
        (None, GENERAL, False),
        (None, LLAMA, True),  # the class does
        ("$A", LLAMA, False),
        ("$A", GENERAL | {"add_bos_token": True}, True),
        ("<s> $A", LLAMA | {"add_bos_token": False}, False),
        ("$A </s>", {"eos_token": "</s>", "bos_token": None, "add_bos_token": True}, False),
    ],
)
def test_bos_is_what_the_files_of_the_tokenizer_say(template, config, expected, tmp_path):
    library(template).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_hugging_face(tmp_path, {"model_type": "llama"})
    assert tokenizer.adds_bos is expected
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.adds_bos is expected and again.hash == tokenizer.hash


def test_bos_by_class_and_of_our_own_tokenizers(vocabularies):
    adds = {name: tokenizer.adds_bos for name, tokenizer in vocabularies.items()}
    del adds["wordpiece"]
    assert adds == {"llama": True, "gpt2": False, "own": True, "byte": True}


@pytest.fixture
def requested(monkeypatch):
    """Requests to `decode`, each of which is answered with thirty ids instead of a model's."""
    requests = []

    def decode(model, ids, options, progress):
        requests.extend(ids)
        return [([9] * 30, 0.0, False)] * len(ids)

    monkeypatch.setattr("flaxlm.inference.generate.decode", decode)
    return requests


def trained(tokenizer, family="decoder", **facts):
    """Return a model without parameters, for what is decided before it is asked."""
    fields = {"vocab_size": 512, "width": 8, "num_layers": 2} | facts.pop("config", {})
    if family == "recurrent":
        config = RecurrentConfig(**fields)
    else:
        config = TransformerConfig(**fields, num_heads=2)
    return TrainedModel(family, build(family, config, {"lm": 0}), {}, tokenizer, **facts)


@pytest.mark.parametrize(
    ("name", "trained_here", "bos", "begins"),
    [
        ("llama", False, "auto", True),
        ("gpt2", False, "auto", False),
        ("gpt2", True, "auto", True),  # as every text did in training
        ("gpt2", False, "always", True),
        ("llama", True, "never", False),
    ],
)
def test_bos_begins_a_prompt(requested, vocabularies, name, trained_here, bos, begins):
    tokenizer = vocabularies[name]
    model = trained(tokenizer, trained_here=trained_here)
    generate(model, ["the cat", ""], GenerateConfig(bos=bos, max_new_tokens=30))
    text, nothing = requested
    assert text == [tokenizer.bos_id] * begins + tokenizer.encode("the cat")
    assert nothing == [tokenizer.bos_id]


def test_bos_that_would_be_ignored_is_refused(requested, vocabularies):
    tokenizer = vocabularies["own"]
    with pytest.raises(ConfigError, match=r"bos='never': the prompts .* as in training"):
        generate(trained(tokenizer), [[5, 6]], GenerateConfig(bos="never"))
    with pytest.raises(ConfigError, match="bos='never' is for models that continue prompts"):
        generate(trained(tokenizer, "encoder_decoder"), ["a"], GenerateConfig(bos="never"))
    with pytest.raises(ConfigError, match=r"bos='no'.*auto, always, never"):
        GenerateConfig(bos="no")


ROTARY = {"positions": "rotary"}


@pytest.mark.parametrize(
    ("family", "config", "context", "length"),
    [
        ("decoder", ROTARY, 32, 33),
        ("decoder", ROTARY, 34, 0),
        ("decoder", ROTARY, 0, 0),  # nobody knows
        ("decoder", ROTARY | {"windows": (4, 0)}, 32, 33),
        ("decoder", ROTARY | {"windows": (4,)}, 32, 0),  # no layer sees as far
        ("decoder", {"positions": "learned"}, 32, 0),  # their end is another matter
        ("encoder_decoder", {"positions": "relative"}, 29, 30),
        ("encoder_decoder", {"positions": "relative"}, 30, 0),
        ("recurrent", {}, 32, 0),
    ],
)
def test_a_text_longer_than_those_of_training_is_warned_of_once(
    requested, vocabularies, family, config, context, length
):
    model = trained(vocabularies["byte"], family, config=config, context=context)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generate(model, ["a", "ab", "abc"], GenerateConfig(max_new_tokens=30))
    assert [str(w.message).split(" tokens")[0] for w in caught] == (
        [f"prompt {1 if family == 'decoder' else 0} and its continuation are {length}"]
        if length
        else []
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, compilation_cache):
    here = tmp_path_factory.mktemp("line")
    return here, CommandLine(here, cwd=here)


def generations(workdir):
    return [json.loads(line) for line in (workdir / "generations.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize("name", ["st_eos", "st_gen"])
def test_every_eos_ends_a_text_of_a_model_its_run_and_its_export(run, shared, name):
    """Id 395 is the thirteenth token that this model writes."""
    here, line = run
    model, workdir, exported = shared(f"cases/models/{name}"), here / name, here / f"{name}_hf"
    assert line("convert", f"--from=hf:{model}", f"--to={workdir}").code == 0
    assert line("convert", f"--from={workdir}", f"--to=hf:{exported}").code == 0
    said = json.loads((exported / "generation_config.json").read_text())
    assert said["eos_token_id"] == [2, 395] and said.get("do_sample") == {"st_gen": False}.get(name)
    asked = ["--prompt=", "--max_new_tokens=30"]
    asked += [] if name == "st_gen" else ["--temperature=0"]
    texts = []
    for place in (f"hf:{model}", workdir, f"hf:{exported}"):
        done = line("generate", f"--workdir={place}", *asked)
        assert done.code == 0, done.err
        assert done.err.count("generation_config.json: temperature 0.0") == (name == "st_gen")
        folder = workdir
        if place != workdir:
            folder = here / f"runs/hf-{place.removeprefix('hf:').strip('/').replace('/', '-')}"
        (made,) = generations(folder)
        assert made["finished"] and len(made["ids"]) == 12
        texts.append(made["text"])
    assert len(set(texts)) == 1


def test_prompt_and_text_are_the_whole_text(run, shared):
    here, line = run
    model = shared("cases/models/st_gen")
    asked = ["--prompt=The cat", "--prompt=Once", "--max_new_tokens=4"]
    assert line("generate", f"--workdir=hf:{model}", *asked).code == 0
    (folder,) = (here / "runs").glob("*st_gen")
    assert [g["text"] for g in generations(folder)] == [" and a bo", " upon a time,"]
    stopped = line("generate", f"--workdir=hf:{model}", *asked, "--stop= a bo", "--stop= upon a t")
    assert stopped.code == 0, stopped.err
    assert [(g["text"], g["finished"]) for g in generations(folder)] == [(" and", True), ("", True)]
