"""Sentences come out of every kind of file with all of their words, and bad lines are named."""

import dataclasses
import gzip
import json
import re
import warnings

import pyarrow
import pyarrow.parquet
import pytest
from compressed import write

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError
from flaxlm.metrics.entities import entities
from flaxlm.tasks import TASKS
from flaxlm.tasks.conll import place_of, read

MOST = 1 << 20
WORDS = [["#new", "de", "le", "York", "!"], ["#", "是", "纽约", "ok"], ["x"]]
TAGS = [["O", "O", "B-L", "I-L", "O"], ["O", "O", "B-L", "O"], ["O"]]
LABELS = ("O", "B-L", "I-L")
PAIRS = [list(zip(*pair, strict=True)) for pair in zip(WORDS, TAGS, strict=True)]
UNIVERSAL = """# newdoc
# text = #new du York!
1\t#new\tl\tO\tX\t_\t_\t_\t_\t_
2-3\tdu\t_\t_\t_\t_\t_\t_\t_\t_
2\tde\tl\tO\tX\t_\t_\t_\t_\t_
3\tle\tl\tB-L\tY\t_\t_\t_\t_\t_
3.1\tgone\tl\tO\tX\t_\t_\t_\t_\t_
4\tYork\tl\tI-L\tX\t_\t_\t_\t_\tA=b|SpaceAfter=No
5\t!\tl\tO\tX\t_\t_\t_\t_\t_

1-3\t#是纽约\t_\t_\t_\t_\t_\t_\t_\t_
1\t#\tl\tO\tX\t_\t_\t_\t_\t_
2\t是\tl\tO\tX\t_\t_\t_\t_\t_
3\t纽约\tl\tB-L\tX\t_\t_\t_\t_\t_
4\tok\tl\tO\tX\t_\t_\t_\t_\t_

1\tx\tl\tO\tX\t_\t_\t_\t_\t_
"""


def columns(separator, middle=()):
    """Return CoNLL with a comment, a document line and blank lines to spare."""
    blocks = [
        "".join(separator.join([word, *middle, tag]) + "\n" for word, tag in pairs)
        for pairs in PAIRS
    ]
    start = f"-DOCSTART-{separator}-X-\n\n"
    return f"# id 7, a comment here\n{blocks[0]}\n \n{start}{blocks[1]}-DOCSTART-\n{blocks[2]}"


TABLE = [{"tokens": words, "tags": tags} for words, tags in zip(WORDS, TAGS, strict=True)]
FILES = {
    "tabs.conll": columns("\t"),
    "spaces.txt": columns(" "),
    "many.conll.gz": columns("  ", ["_", "_"]),
    "three.bio.zst": columns("\t", ["a b"]),
    "windows.conll": "\ufeff" + columns("\t").replace("\n", "\r\n"),
    "universal.conllu": UNIVERSAL,
    "universal.conllu.gz": UNIVERSAL,
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in TABLE),
    "rows.parquet": "",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_words_and_tags(tmp_path, name):
    path = write(tmp_path / name, FILES[name])
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
    found = list(read(path, MOST))
    assert [[word.strip() for word in r.columns["words"]] for r in found] == WORDS
    assert [r.columns["tags"] for r in found] == TAGS
    if "rows" in name:
        assert place_of(found[1], 2) == f"{found[1].place}, word 3"
    else:  # the lines that errors name are those of the words
        lines = FILES[name].split("\n")
        for record in found:
            for index, word in enumerate(record.columns["words"]):
                line = place_of(record, index).removeprefix(f"{path}, line ")
                assert word.strip() in re.split(r"\s", lines[int(line) - 1].lstrip("\ufeff"))
            assert record.id == f"{path}:{record.columns['lines'][0]}"


def test_columns_are_chosen_by_name_or_number(tmp_path):
    path = write(tmp_path / "a.conllu", UNIVERSAL)
    record = next(read(path, MOST, "lemma", "xpos"))
    assert "".join(record.columns["words"]) == "l l l ll"
    assert record.columns["tags"] == ["X", "X", "Y", "X", "X"]
    path = write(tmp_path / "a.conll", "1 a P B\n2 b Q O\n")
    for words, tags in (("1", "3"), ("-3", "-1")):
        found = next(read(path, MOST, words, tags)).columns
        assert (found["words"], found["tags"]) == (["a", " b"], ["B", "O"])
    path = write(tmp_path / "a.jsonl", '{"w": ["a", "b"], "ner": [1, 0]}\n')
    assert next(read(path, MOST, "w", "ner")).columns["tags"] == [1, 0]
    task = TASKS["ner"](word_column="w", tag_column="ner")
    with pytest.warns(UserWarning, match=f"line 1: tags are numbers, .*: 0 as {LABELS[0]}, 1 as"):
        (found,) = task.examples(DataConfig(path=path, split="whole"), "test", LABELS)
    assert found["tags"] == [1, 0] and task.golds([found])[0].tags == ("B-L", "O")


@pytest.mark.parametrize(
    "spaces,expected",
    [
        ("auto", ["#new de le York !", "#是纽约ok", "x"]),
        ("always", ["#new de le York !", "# 是 纽约 ok", "x"]),
        ("never", ["#newdeleYork!", "#是纽约ok", "x"]),
    ],
)
def test_words_join_to_the_text(tmp_path, spaces, expected):
    texts = {
        name: ["".join(r.columns["words"]) for r in read(path, MOST, spaces=spaces)]
        for name in ("tabs.conll", "universal.conllu")
        for path in [write(tmp_path / name, FILES[name])]
    }
    assert texts["tabs.conll"] == expected
    if spaces == "auto":  # as the file says: no space in a range that its words spell, one in `du`
        expected = ["#new de le York!", "#是纽约 ok", "x"]
    assert texts["universal.conllu"] == expected


BAD = {
    "few.conll": ("a\tO\nb\n", r"line 2 has 1 column and the first line of words 2.*tabs: 'b'"),
    "hashtag.conll": ("a\tO\n#b\n", r"line 2 has 1 column.*'#b'"),
    "many.txt": ("a O\n\nb c O\n", r"line 3 has 3 columns .* words 2.*spaces.*is taken for CoNLL"),
    "blank.conll": ("a\tO\n\u00a0\tO\n", r"line 2: the word in column '0' is empty"),
    "tag.conll": ("a\tO\nb\tB-X\n", r"line 2: tag 'B-X' of the word 'b'.*valid: O, B-L, I-L"),
    "near.conll": ("a\tB-LL\n", r"line 1: tag 'B-LL'.*did you mean 'B-L'"),
    "raw.txt": ("今天天气很好。\n", r"raw.txt has one column \('今天天气很好。' …\), and CoNLL"),
    "line.txt": ("我 爱 北京 天安门\n", r"line.txt looks like text.*data.format='conll'"),
    "lines.txt": ("我 爱 北京\n\n你 爱 上海\n", r"lines.txt looks like text: taken for CoNLL"),
    "even.txt": ("我 爱 北京\n你 爱 上海\n", r"tag '北京' .*even.txt is taken for CoNLL, .* if"),
    "even.conll": ("a b\nc d\n", r"tag 'b' of the word 'a'.*valid: O, B-L, I-L$"),
    "mac.conll": ("a\tO\rb\tO\r", r"its lines end in a carriage return"),
    "wide.conll": ("a\tO\nb\tO\n".encode("utf-16"), r"begins with the mark of UTF-16"),
    "deep.jsonl": ('{"tokens": ' + "[" * 100_000, r"line 1 is not JSON: it is nested too deeply"),
    "half.jsonl": ('{"tokens": ["a\\ud83d"], "tags": ["O"]}', r"line 1: .*an unpaired surrogate"),
    "one.conll": ("a\nb\n", r"line 1: there is no column '-1'; columns: 0"),
    "latin.conll": (b"a\tO\n\xff\tO\n", r"byte 4 \(line 2\) is not UTF-8"),
    "nul.conll": ("a\tO\n\0\tO\n", r"\(line 2\) is NUL"),
    "long.conll": ("a" * (MOST + 2), r"line 1 is longer than 1,048,576 bytes"),
    "empty.conll": ("# a comment\n\n", r"the train split is empty"),
    "bad.conll.gz": ("a\tO\n", "is damaged or not gzip"),
    "ten.conllu": ("1\ta\tO\n", r"line 1 is not CoNLL-U, which has a number and 9 more columns"),
    "id.conllu": (UNIVERSAL.replace("5\t!", "five\t!"), r"line 9 is not CoNLL-U"),
    "blankless.conllu": (UNIVERSAL.replace("\n\n1\tx", "\n1\tx"), r"line 16: word 1 where word 5"),
    "wordless.conllu": ("# c\n1-2\tab" + "\t_" * 8 + "\n", r"line 2: a sentence without a word"),
    "upos.conllu": (UNIVERSAL.replace("x\tl\tO", "x\tl\t_"), r"line 17: there is no column 'upos'"),
    "count.jsonl": ('{"tokens": ["a"], "tags": []}', r"line 1: 1 words in column 'tokens' and 0"),
    "no.jsonl": ('{"token": ["a"]}', r"line 1: there is no column 'tokens'.*mean 'token'"),
    "text.jsonl": ('{"tokens": "a", "tags": ["O"]}', r"'tokens' holds 'a', not a list of words"),
    "type.jsonl": ('{"tokens": ["a", 1], "tags": ["O", "O"]}', r"word 2: the word.*is 1, not a"),
    "none.jsonl": ('{"tokens": [], "tags": []}', r"line 1: column 'tokens' holds no words"),
    "range.jsonl": ('{"tokens": ["a"], "tags": [3]}', r"line 1, word 1: tag 3.*or 0 … 2"),
    "bool.jsonl": ('{"tokens": ["a"], "tags": [true]}', r"word 1: tag True of the word 'a'"),
    "a.csv": ("tokens,tags\na b,O O\n", r"line 2: column 'tokens' holds 'a b', not a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path, name):
    text, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    data = DataConfig(path=str(path), split="tail", valid_fraction=0, max_line_bytes=MOST)
    with pytest.raises(DataError, match=message) as caught:
        TASKS["ner"]().examples(data, "train", LABELS)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_config_gets_wrong_is_refused(tmp_path):
    path = write(tmp_path / "a.conll", columns("\t"))
    data = DataConfig(path=path, split="tail", valid_fraction=0)
    with pytest.raises(DataError, match="same column, '1' and '-1'"):
        TASKS["ner"](word_column="1").examples(data, "train", LABELS)
    with pytest.raises(DataError, match="no column '5'; columns: 0, 1, -2, -1"):
        TASKS["ner"](word_column="5").examples(data, "train", LABELS)
    with pytest.raises(ConfigError, match="auto, always, never"):
        TASKS["pos"](spaces="none")
    with pytest.raises(ConfigError, match="bio, bioes, bmes, iob1"):
        TASKS["ner"](scheme="BIO2")
    for labels, message in (
        (("O", "I-L"), "has 'I-L' and not 'B-L'"),
        (("O", "S-L"), "none of scheme BIO"),
        (("O",), "at least two labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            TASKS["ner"]().examples(data, "train", labels)
    TASKS["ner"](scheme="iob1").examples(data, "train", LABELS)
    assert list(TASKS["ner"]().label_counts(data)) == sorted(LABELS)


@pytest.mark.parametrize("name", ["test.conll", "test.conllu", "test.jsonl"])
def test_a_test_split_without_tags_has_words_and_no_golds(tmp_path, name):
    texts = {
        "test.conll": "a\nb\n\nc\n",
        "test.conllu": "".join(
            f"{i}\t{w}" + "\t_" * 8 + "\n" + "\n" * (w == "b")
            for i, w in ((1, "a"), (2, "b"), (1, "c"))
        ),
        "test.jsonl": '{"tokens": ["a", "b"]}\n{"tokens": ["c"]}\n',
    }
    data = DataConfig(
        path=write(tmp_path / "train.conll", columns("\t")),
        split="file",
        valid_path=write(tmp_path / "valid.conll", columns("\t")),
        test_path=write(tmp_path / name, texts[name]),
    )
    task = TASKS["ner"]()
    found = task.examples(data, "test", LABELS)
    assert [e["words"] for e in found] == [["a", " b"], ["c"]]
    assert task.golds(found) == [None, None] and task.golds(task.examples(data, "valid", LABELS))
    with pytest.raises(DataError, match="no column"):
        moved = DataConfig(path=data.test_path, split="file", valid_path=data.valid_path)
        task.examples(moved, "train", LABELS)


@pytest.mark.parametrize("form", ["conll", "conllu", "jsonl"])
def test_the_config_says_what_a_text_file_is(tmp_path, form):
    names = {"conll": "tabs.conll", "conllu": "universal.conllu", "jsonl": "rows.jsonl"}
    path = write(tmp_path / "a.txt", FILES[names[form]])
    found = [[w.strip() for w in r.columns["words"]] for r in read(path, MOST, form=form)]
    assert found == WORDS
    with pytest.raises(ConfigError, match=r"data.format='text' .*auto, conll, conllu, jsonl, csv"):
        next(read(path, MOST, form="text"))


def test_words_without_tags_are_read_where_the_config_says_so(tmp_path):
    data = DataConfig(path=write(tmp_path / "a.txt", "a\nb\n\nc\n"), split="whole", format="conll")
    assert [e["words"] for e in TASKS["ner"]().examples(data, "test", LABELS)] == [
        ["a", " b"],
        ["c"],
    ]


@pytest.mark.parametrize("task", ["ner", "pos"])
@pytest.mark.parametrize(
    ("name", "text", "tags"),
    [
        ("one.txt", "It rains .\nShe left .\nHe stays .\nIt ends .\nWho knows ?\n", "'.', '[?]'"),
        ("more.txt", "".join(f"w x{n}\n" + "\n" * (n % 2) for n in range(8)), "'x0', 'x1', .*, …"),
    ],
)
def test_text_in_lines_of_equally_many_words_is_spoken_of(tmp_path, task, name, text, tags):
    """Where its last words are taken for tags, because the labels are left to the data."""
    task, data = TASKS[task](), DataConfig(path=write(tmp_path / name, text), split="whole")
    said = rf"^tags are {tags}: .*{name} is taken for CoNLL, .*data.format='conll' says"
    with pytest.warns(UserWarning, match=said):
        task.label_counts(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.label_counts(dataclasses.replace(data, format="conll"))
        for form in (FILES["spaces.txt"], FILES["tabs.conll"], text.replace(" ", "\t")):
            task.label_counts(dataclasses.replace(data, path=write(tmp_path / "a.txt", form)))


# --- real data


@pytest.mark.parametrize(
    "part,posts,words,found", [("dev", 1009, 15733, 836), ("test", 1287, 23394, 1079)]
)
def test_wnut17_has_its_published_counts(shared, part, posts, words, found):
    path = str(shared(f"data/wnut17/{part}.conll"))
    task = TASKS["wnut17"]()
    labels = task.defaults["objective"]["labels"]
    data = DataConfig(path=path, split="whole")
    examples = task.examples(data, "test", labels)
    assert (len(examples), sum(len(e["words"]) for e in examples)) == (posts, words)
    golds = task.golds(examples)
    assert sum(len(entities(gold.tags, "BIO")) for gold in golds) == found
    assert any(word.startswith("#") for gold in golds for word in gold.words)


@pytest.mark.parametrize(
    "name,sentences,words",
    [
        ("ud_english_ewt/dev", 2001, 25147),
        ("ud_chinese_gsdsimp/dev", 500, 12663),
        ("ud_chinese_gsdsimp/test", 500, 12012),
    ],
)
def test_treebanks_have_their_published_counts_and_texts(shared, name, sentences, words):
    path = shared(f"data/{name}.conllu.gz")
    task = TASKS["ud_pos"]()
    data = DataConfig(path=str(path), split="whole")
    examples = task.examples(data, "test", task.defaults["objective"]["labels"])
    assert (len(examples), sum(len(e["words"]) for e in examples)) == (sentences, words)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [line[9:].rstrip("\n") for line in file if line.startswith("# text = ")]
    assert [e["text"] for e in examples] == texts


@pytest.mark.parametrize("name", ["wnut17/dev.conll", "ud_english_ewt/dev.conllu.gz"])
@pytest.mark.parametrize("most", [2, 20, 400])
def test_columns_in_a_text_file_are_not_taken_for_text(shared, tmp_path, name, most):
    task = TASKS["pos"]()
    found = list(read(str(shared(f"data/{name}")), MOST))[:most]
    rows = [zip(r.columns["words"], r.columns["tags"], strict=True) for r in found]
    texts = ["".join(f"{re.sub(' ', '', w)} {t}\n" for w, t in row) for row in rows]
    path = write(tmp_path / "a.txt", "\n".join(texts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = task.label_counts(DataConfig(path=path, split="whole"))
    assert len(counts) >= 5 or most < 400
