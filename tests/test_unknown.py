"""Text that the tokenizer does not know is warned of, with its share and examples."""

import re
import warnings

import pytest

from flaxlm.data import cache
from flaxlm.data.hugging_face import load_hugging_face
from flaxlm.data.sources import DataConfig
from flaxlm.data.unknown import warn_unknown
from flaxlm.objectives import supervised

KNOWN = ["the sea was calm", "the sky was grey", "a calm grey sea"] * 30
NAMES = ["张伟 was calm", "李娜 was grey", "a sea", "张伟"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordpiece")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(" ".join(KNOWN).split())]
    # The mark of an encoding before the first word is no part of it.
    (folder / "vocab.txt").write_text("\ufeff" + "\n".join(words) + "\n", encoding="utf-8")
    return load_hugging_face(folder)


def test_a_mark_before_the_vocabulary_is_no_text(tokenizer):
    assert tokenizer.pieces([0, 1])[0] == "[PAD]" and tokenizer.pad_id == 0


def test_examples_of_a_task_are_warned_of_and_rare_unknown_text_is_not(tokenizer):
    with pytest.warns(
        UserWarning, match=r"^50% of the tokens of 4 texts .*tokenizer \('张伟', '李娜' …\)"
    ):
        supervised.encode(tokenizer, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supervised.encode(tokenizer, [*KNOWN, "张"])
        supervised.encode(tokenizer, [""])


def test_an_end_that_is_the_unknown_token_is_not_unknown(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "unk_id", tokenizer.eos_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unknown(tokenizer, [[tokenizer.eos_id]], [""])


def test_a_corpus_is_warned_of_when_its_cache_is_built(tokenizer, tmp_path):
    said = []
    for name, lines in (("names", NAMES), ("known", [*KNOWN, "张"])):
        (tmp_path / name).write_text("\n".join(lines))
        config = DataConfig(path=str(tmp_path / name), document="line", valid_fraction=0, workers=1)
        cache.build_cache(config, tokenizer, tmp_path / f"{name}.cache", said.append)
    share = r"train: warning: 6 unknown tokens \(\d+\.\d%, such as '张伟', '李娜'\): this text does"
    warned = [line for line in said if "unknown" in line]
    assert len(warned) == 2
    assert re.match(share, warned[0]), warned[0]
    assert re.match(r"train: warning: 1 unknown tokens \(0\.2%\): this text does", warned[1])
