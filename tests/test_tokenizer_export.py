"""What another project's tokenizer knew besides ids goes out again, through a run and without."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.tokenizer import load_tokenizer
from flaxlm.data.vocabulary import ByteTokenizer
from flaxlm.interop.tokenizer import export_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog and reads a small book of names "
CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
KNOWN = {
    "model_max_length": 77,
    "padding_side": "left",
    "truncation_side": "left",
    "clean_up_tokenization_spaces": True,
    "do_lower_case": False,
    "note": "kept",
}


def token(content, **flags):
    return {"__type": "AddedToken", "content": content, "normalized": False} | flags


def word_piece(directory):
    letters = sorted(set(TEXT) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (directory / "vocab.txt").write_text("\n".join(pieces))
    mask = token("[MASK]", lstrip=True, single_word=True)
    return {"tokenizer_class": "BertTokenizer", "mask_token": mask}


def byte_level(directory):
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<brand>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([TEXT], trainer)
    library.model.save(str(directory))
    return {
        "tokenizer_class": "RobertaTokenizer",
        "mask_token": token("<mask>", lstrip=True),
        "additional_special_tokens": ["<brand>"],
        "added_tokens_decoder": {"5": token("<brand>", rstrip=True, special=True)},
    }


def piece_model(directory, name, kind, **options):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split()), model_writer=out, model_type=kind, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    (directory / name).write_bytes(out.getvalue())


def unigram(directory):
    roles = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    piece_model(directory, "spiece.model", "unigram", vocab_size=50, **roles)
    pad = token("<pad>", rstrip=True, special=True)
    return {"tokenizer_class": "T5Tokenizer", "extra_ids": 3, "pad_token": pad,
            "added_tokens_decoder": {"0": pad}}  # fmt: skip


def piece_pairs(directory):
    piece_model(directory, "tokenizer.model", "bpe", vocab_size=320, byte_fallback=True)
    eos = token("</s>", rstrip=True, special=True)
    return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "eos_token": eos,
            "pad_token": "<unk>", "added_tokens_decoder": {"2": eos}}  # fmt: skip


KINDS = {f.__name__: f for f in (word_piece, byte_level, unigram, piece_pairs)}


def knows(directory):
    """Return what `transformers` makes of a directory, apart from the class."""
    library = AutoTokenizer.from_pretrained(directory)
    names = ("model_max_length", "padding_side", "truncation_side", "chat_template")
    facts = {name: getattr(library, name) for name in names}
    facts |= {n: library.init_kwargs.get(n) for n in ("do_lower_case", "note", "extra_ids")}
    facts["clean_up"] = library.clean_up_tokenization_spaces
    facts["special"] = library.special_tokens_map
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    special = set(library.all_special_ids)
    facts["flags"] = {
        t.content: [getattr(t, flag) for flag in flags]
        for index, t in library.added_tokens_decoder.items()
        if index in special
    }
    facts["ids"] = library("the fox reads", "a book")["input_ids"]
    facts["padded"] = library(["the fox", "a"], padding=True)["attention_mask"]
    facts["cut"] = library((TEXT * 9).strip(), truncation=True)["input_ids"]
    facts["chat"] = library.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return facts


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_goes_out_again(kind, where, tmp_path):
    original, run, out = (tmp_path / name for name in ("original", "run", "out"))
    original.mkdir()
    config = KINDS[kind](original) | KNOWN
    if where == "chat_template.jinja":
        (original / where).write_text(CHAT)
    else:
        config["chat_template"] = CHAT
    (original / "tokenizer_config.json").write_text(json.dumps(config))
    expected = knows(original)
    assert expected["model_max_length"] == 77 and expected["chat_template"] == CHAT
    assert len(expected["cut"]) == 77 and expected["padded"][1][0] == 0
    export_tokenizer(load_hugging_face(original), out, max_length=512)
    found = knows(out)
    assert found == expected
    load_hugging_face(original).save(run)
    export_tokenizer(load_tokenizer(run), tmp_path / "again", max_length=512)
    assert knows(tmp_path / "again") == expected


@pytest.mark.parametrize("kind", ["byte_level", "gpt2", "flag", "class", "piece_pairs", "byte"])
def test_a_model_trained_to_go_on_from_a_text_says_that_bos_begins_it(kind, tmp_path):
    """Whatever the files brought: `<s> a </s>`, none, by flag, by class, `<s> a`, and our own's."""
    tokenizer = ByteTokenizer(0)
    if kind != "byte":
        config = KINDS["byte_level" if kind in ("gpt2", "flag", "class") else kind](tmp_path)
        if kind in ("gpt2", "flag", "class"):
            config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": kind == "flag"}
            config |= {role: "<s>" for role in ("bos_token", "unk_token")} | {"eos_token": "</s>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_hugging_face(tmp_path, {})
        if kind == "class":
            config = config | {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": None}
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
            (tmp_path / "tokenizer.json").write_bytes(tokenizer.tokenizer_json)
            tokenizer = load_hugging_face(tmp_path, {})
    assert tokenizer.adds_bos is (kind != "gpt2")
    export_tokenizer(tokenizer, tmp_path / "out", after_bos=True)
    expected = [tokenizer.bos_id, *tokenizer.encode("the fox")]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the fox")["input_ids"] == expected
    again = load_hugging_face(tmp_path / "out")
    assert again.adds_bos and again.with_specials(again.encode("the fox"))[0] == expected
    # A model that was not trained here keeps what its files said.
    export_tokenizer(tokenizer, tmp_path / "kept")
    kept = load_hugging_face(tmp_path / "kept")
    assert kept.adds_bos is tokenizer.adds_bos and kept.template == tokenizer.template


def test_a_length_is_that_of_the_model_where_the_files_say_none_or_more(tmp_path):
    config = word_piece(tmp_path)
    for said, expected in ((None, 128), (10**30, 128), (64, 64)):
        facts = config | ({} if said is None else {"model_max_length": said})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
        export_tokenizer(load_hugging_face(tmp_path), tmp_path / "out", max_length=128)
        assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == expected
