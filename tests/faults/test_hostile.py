"""Hostile files of tokenizers, configs and rows: one line, the right exit code, in bounded time."""

import base64
import json
import time

import pytest
from command_line import ROOT, CommandLine

from flaxlm.commands.recipe import read_value
from flaxlm.data import hugging_face, sentence_modules, tables, vetted
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.interop import config as hf_config
from flaxlm.tasks.choices import right_choice
from flaxlm.tasks.labels import LabelIds
from flaxlm.tasks.records import Record
from flaxlm.training import config as run_config
from flaxlm.untrusted import panics, parse_json

PIECES = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, " ": 4}


def pipeline(**parts) -> dict:
    """Return a small tokenizer.json with other parts; `model` is merged into the model."""
    model = {"type": "WordLevel", "vocab": PIECES, "unk_token": "<unk>"} | parts.pop("model", {})
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    facts = {"version": "1.0", "truncation": None, "padding": None}
    facts |= {"added_tokens": [{"id": 1, "content": "</s>", "special": True} | token]}
    facts |= dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return facts | parts | {"model": model}


def directory(tmp_path, facts, **files):
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def replace(pattern, content, kind="Regex"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(steps, key):
    return {"type": "Sequence", key: steps}


def split(pattern):
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return step | {"invert": False}


CHARSMAP = base64.b64encode(b"\0\0\0\0" + b"x" * 300 + b"\0").decode()
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 2000,
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}  # fmt: skip
HOSTILE = {
    "backtracking": (dict(pre_tokenizer=split("(a+)+b")), r"'\(a\+\)\+b' takes too long, or fails"),
    "a square": (dict(normalizer=replace(r"\s+$", "")), r"takes too long, or fails, on a run of "),
    "a look": (dict(decoder=replace(r"(?=(a+))a*b\1", "")), r"takes too long, or fails"),
    "nested": (dict(normalizer=sequence([sequence([replace("(x|x+)*y", "")], "normalizers")],
                                        "normalizers")), r"takes too long, or fails"),
    "no expression": (dict(pre_tokenizer=split("(a")), r"takes too long, or fails"),
    "growth": (dict(normalizer=replace("a", "a" * 10**6, "String")),
               r"its normalizer \(Replace\) may make a text more than 100 times as long"),
    "chained growth": (dict(normalizer=sequence([replace("a", "aa", "String")] * 40,
                                                "normalizers")), r"normalizer \(Replace\) may"),
    "growth of nothing": (dict(normalizer=replace("", "b" * 200)), r"normalizer \(Replace\) may"),
    "bytes of bytes": (dict(normalizer=sequence([{"type": "ByteLevel"}] * 12, "normalizers")),
                       r"normalizer \(ByteLevel\) may make"),
    "forms of what grew": (dict(normalizer=sequence([replace("a", "ﷺ" * 9, "String"),
                                                     {"type": "NFKD"}], "normalizers")),
                           r"normalizer \(NFKD\) may make a text more than 100 times"),
    "steps": (dict(normalizer=sequence([{"type": "NFKC"}] * 5000, "normalizers")),
              r"its normalizer has more than 64 steps"),
    "prose": (dict(normalizer=replace(r"(?=\p{Ll}{2,9}\p{Zs}\p{Ll}{2,9}\p{Zs})"
                                      r"(?:[\p{Ll}\p{Zs}]{1,3}){12}\p{Nd}\p{Lu}", "")),
              r"takes too long, or fails"),
    "a prefix": (dict(normalizer={"type": "Prepend", "prepend": "a" * 10**5}), r"\(Prepend\) may"),
    "decoder": (dict(decoder=replace("a", "b" * 10**5, "String")), r"its decoder \(Replace\) may"),
    "a map": (dict(normalizer={"type": "Precompiled", "precompiled_charsmap": CHARSMAP}),
              r"its map of characters makes more than 100 bytes of one"),
    "a template": (dict(post_processor=TEMPLATE), r"its template has more than 1,000 tokens"),
    "words": (dict(model={"type": "WordPiece", "continuing_subword_prefix": "##",
                          "max_input_chars_per_word": 10**9}), r"max_input_chars_per_word=10000"),
    "an id": (dict(model={"vocab": PIECES | {"c": 2**32 - 1}}), r"an id is not below 16,777,216"),
    "a piece": (dict(model={"vocab": PIECES | {"c" * 5000: 5}}), r"a piece has more than 4,096"),
    "no steps": (dict(normalizer={"type": "Sequence", "normalizers": 5}), r"TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_takes_too_long_or_makes_too_much_is_refused(name, tmp_path):
    parts, message = HOSTILE[name]
    begun = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        load_hugging_face(directory(tmp_path, pipeline(**parts)))
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert time.process_time() - begun < 5


def test_tokenizers_as_they_are_published_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(vetted.subprocess, "run", lambda *_, **__: pytest.fail("a process"))
    for pattern in sorted(vetted.KNOWN):
        facts = pipeline(pre_tokenizer=split(pattern), normalizer=replace(" ", "▁", "String"))
        assert load_hugging_face(directory(tmp_path, facts)).encode("a") == [2]


def test_a_sentence_piece_model_makes_no_long_text_of_a_character(tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    config = TokenizerConfig(kind="char", normalization="nmt_nfkc", sentinels=0)
    made = train_tokenizer(config, ["a b c d e f"] * 9).model
    path = tmp_path / "tokenizer.model"
    path.write_bytes(made)
    assert load_tokenizer(path).encode("a")
    model = sentencepiece_model_pb2.ModelProto.FromString(made)
    model.normalizer_spec.precompiled_charsmap += b"x" * 300 + b"\0"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="its map of characters makes more than 100 bytes of one"):
        load_tokenizer(path)


def test_a_long_text_is_encoded_in_bounded_memory(tmp_path):
    """The library keeps some 440 bytes a token: of these twelve million characters 2.7 GB."""
    hub = directory(tmp_path, pipeline(pre_tokenizer={"type": "Whitespace"}))
    line = CommandLine(tmp_path, seconds=100)
    done = line(str(ROOT / "tests" / "faults" / "peak.py"), str(tmp_path / "peak"), "read", "long",
                str(hub))  # fmt: skip
    assert done.code == 0, done.err
    assert int((tmp_path / "peak").read_text()) < 400 << 20


def test_other_expressions_are_tried_and_taken(tmp_path):
    pattern = r"[A-Z]+(?=[a-z])|\p{L}{1,3}+|(?<=x)\d+|\s+(?!\S)|.|\n"
    facts = pipeline(pre_tokenizer=split(pattern), normalizer=replace(r"\s\s+", " "))
    assert load_hugging_face(directory(tmp_path, facts)).encode("a") == [2]


def test_a_panic_of_the_library_is_an_error_of_the_data(tmp_path, monkeypatch):
    # What no sample finds, the library itself ends after ten million steps, by a panic.
    monkeypatch.setattr(vetted, "vet", lambda *_: None)
    tokenizer = load_hugging_face(directory(tmp_path, pipeline(pre_tokenizer=split("(a+)+b"))))
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(DataError, match=r"library stopped within a text.*retry-limit"):
            encode("a" * 3000 + "c b")
    with pytest.raises(DataError, match="library stopped"):
        tokenizer.encode_batch(["a" * 3000 + "c b"])
    with pytest.raises(KeyboardInterrupt), panics("x"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("count", [10**12, -1, "5", 1.5, True])
def test_numbers_of_a_tokenizers_config_are_of_a_size_that_can_be(count, tmp_path):
    config = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": count}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="extra_ids="):
        load_hugging_face(tmp_path)
    saved = {"kind": "byte", "sentinels": count, "hash": "x"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(DataError, match=r"extra_ids=|is damaged"):
        load_tokenizer(tmp_path)


WRONG = {
    "deep": b"[" * 100_000,
    "nested": b"[" * 300 + b"]" * 300,
    "digits": b'{"a": ' + b"1" * 5000 + b"}",
    "surrogate": b'{"a": "\\ud800"}',
    "latin": b'{"a": "\xe9"}',
    "surrogate bytes": b'{"a": "\xed\xa0\x80"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "cut": b'{"a": ',
    "nothing": b"",
}
TWICE = b'{"model_type": "bert", "seed": 1, "a": {"b": 1, "b": 2}, "seed": 2}'


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"]
)
def test_every_reader_of_json_refuses_what_is_none(name, file, tmp_path):
    with pytest.raises(ValueError):
        parse_json(WRONG[name])
    directory(tmp_path, pipeline())
    (tmp_path / file).write_bytes(WRONG[name])
    read = hf_config.read if file == "config.json" else hugging_face.load_hugging_face
    for reader in (read, load_tokenizer) if file == "tokenizer.json" else (read,):
        with pytest.raises(DataError, match=file):
            reader(tmp_path)


@pytest.mark.parametrize("file", ["recipe.json", "config.json", "tokenizer_config.json",
                                  "tokenizer.json", "modules.json", "rows.jsonl"])  # fmt: skip
def test_a_key_that_stands_twice_is_refused_wherever_one_is_meant(file, tmp_path):
    readers = {
        "recipe.json": lambda: run_config.read_json(tmp_path / file),
        "config.json": lambda: hf_config.read(tmp_path),
        "tokenizer_config.json": lambda: hugging_face.load_hugging_face(tmp_path),
        "tokenizer.json": lambda: vetted.vet(TWICE, file),
        "modules.json": lambda: sentence_modules._parsed({file: TWICE.decode()}, file, dict),
        "rows.jsonl": lambda: list(tables.rows(str(tmp_path / file), 0)),
    }
    directory(tmp_path, pipeline())
    (tmp_path / file).write_bytes(TWICE)
    with pytest.raises((DataError, ConfigError), match=f"{file}.*'b' stands twice in one object"):
        readers[file]()


def test_a_model_of_no_heads_is_no_bug(tmp_path):
    """0 would stand for a usual size in a config of ours, or divide."""
    sizes = ("num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")
    for name in (*sizes, "max_position_embeddings", "num_hidden_layers", "type_vocab_size"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", name: 0}))
        with pytest.raises(ConfigError, match=rf"{name}=0 must be in 1 … "):
            hf_config.read(tmp_path)


@pytest.mark.parametrize("text", ["(" * 5000, "[" * 90_000, "(" + "-" * 50_000 + "1,)"])
def test_values_on_the_command_line_may_be_anything(text):
    with pytest.raises(ConfigError, match="must be of type"):
        read_value("data.weights", tuple[float, ...], text)


def test_numbers_in_rows_may_be_of_any_size():
    record = Record("f", 1, {"n": 10**400, "label": "9" * 5000})
    with pytest.raises(DataError, match="not a finite number"):
        record.number("n")
    with pytest.raises(DataError, match="holds the label"):
        record.label("label", LabelIds(("x", "y")))
    with pytest.raises(DataError, match="label"):
        right_choice(record, "label", ["x", "y"])


def test_the_command_line_says_it_in_one_line(tmp_path):
    line, hub = CommandLine(tmp_path), directory(tmp_path, pipeline(**HOSTILE["a square"][0]))
    (tmp_path / "text.txt").write_text("a b\n" * 99)
    (tmp_path / "deep.json").write_bytes(WRONG["deep"])
    arguments = (f"--config.tokenizer.path={hub}", f"--config.data.path={tmp_path / 'text.txt'}")
    recipe = f"--config={ROOT / 'configs' / 'quickstart.py'}"
    done = line("tokenize", recipe, f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.code == 65 and "takes too long, or fails" in done.errors[0], done.err
    done = line("train", f"--config={tmp_path / 'deep.json'}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 2 and "nested too deeply" in done.errors[0], done.err
    assert "Traceback" not in done.err
