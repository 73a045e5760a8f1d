"""A prompt and what is written after it, as the files of the tokenizer say: BOS, spaces, EOS."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from flaxlm.data.vocabulary import ByteTokenizer

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
