"""Tasks that are answered with a text: examples from files, references, scores."""

import gzip
import json

import numpy as np
import pytest
import rouge_score.rouge_scorer
import sacrebleu

from flaxlm.data.sources import DataConfig
from flaxlm.errors import ConfigError, DataError, MissingInput
from flaxlm.tasks import TASKS
from flaxlm.tasks.task import Answer
from flaxlm.training.config import choose_task


def lines(path, rows):
    """Write rows as JSON lines; return the file's name."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def whole(path, **fields):
    """Return the config of a set whose every split is all of one file."""
    return DataConfig(path=str(path), split="whole", **fields)


def pairs(task, path, split="train"):
    return [
        (e["text"], e.get("references", e["target"])) for e in task.examples(whole(path), split)
    ]


# --- references


def test_several_right_texts_are_learnt_by_the_first_and_scored_by_all(tmp_path):
    rows = [
        {"document": "d1", "summary": ["one", "two"]},
        {"document": "d2", "summary": "three"},
        {"document": "d3", "a": "four", "b": "five"},
    ]
    task = TASKS["summarization"](reference_columns=("a", "b"))
    found = task.examples(whole(lines(tmp_path / "a.jsonl", rows)), "test")
    assert [e["text"] for e in found] == ["summarize: d1", "summarize: d2", "summarize: d3"]
    assert [e["target"] for e in found] == ["one", "three", "four"]
    assert task.golds(found) == [["one", "two"], "three", ["four", "five"]]
    assert [answer.value for answer in task.perfect(task.golds(found))] == ["one", "three", "four"]
    unknown = lines(tmp_path / "b.jsonl", [{"document": "d"}])
    assert task.golds(task.examples(whole(unknown), "test")) == [None]
    with pytest.raises(DataError, match=r"line 1: there is no column 'summary'.*columns: document"):
        task.examples(whole(unknown), "train")
    for bad, message in (([], "is an empty list"), (["x", " "], "is empty"), (["x", 3], "holds 3")):
        path = lines(tmp_path / "c.jsonl", [rows[1], {"document": "d", "summary": bad}])
        with pytest.raises(DataError, match=f"line 2: column 'summary' {message}"):
            task.examples(whole(path), "train")


TEXTS = [
    ("the cat sat on the mat", ["a cat sat on a mat today", "the cat is on the mat"]),
    ("nothing in common here at all", ["dogs ran away"]),
    ("He said: “no”.", ["He said no", "He said: “no”.", "Nobody said a thing to him"]),
    ("", ["an answer of some words"]),
]


def test_scores_of_several_references_are_those_of_the_libraries():
    texts, golds = [text for text, _ in TEXTS], [gold for _, gold in TEXTS]
    names = ("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "exact_match")
    task = TASKS["text_to_text"](scored_by=names)
    scores = task.metrics([Answer(text) for text in texts], golds)
    assert tuple(scores) == names
    scorer = rouge_score.rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        theirs = name.replace("_l", "L").replace("_", "")
        best = [
            max(scorer.score(one, text)[theirs].fmeasure for one in gold) for text, gold in TEXTS
        ]
        assert scores[name] == pytest.approx(np.mean(best), abs=1e-12)
    most = max(map(len, golds))
    streams = [[gold[k] if k < len(gold) else None for gold in golds] for k in range(most)]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score, abs=1e-9)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, streams).score, abs=1e-9)
    assert scores["exact_match"] == 0.25
    intervals = task.intervals([Answer(text) for text in texts], golds)
    assert intervals.keys() == scores.keys()
    assert all(low <= scores[name] <= high for name, (low, high) in intervals.items())
    assert task.mistake(Answer("?!"), "?!") == 0.0  # no word, and right all the same
    mistakes = [task.mistake(Answer(text), gold) for text, gold in TEXTS]
    assert mistakes[2] == 0.0 and mistakes[3] == 1.0 and 0 < mistakes[0] < mistakes[1] == 1.0


def test_what_the_metrics_cannot_read_is_refused_before_anything_is_trained(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"input": "问题", "target": "今天天气很好"}] * 3)
    with pytest.raises(DataError, match=r"language='en'.*set it to 'zh'"):
        TASKS["text_to_text"]().examples(whole(path), "train")
    task = TASKS["text_to_text"](language="zh", scored_by=("rouge_l", "bleu"))
    golds = task.golds(task.examples(whole(path), "train"))
    assert task.metrics(task.perfect(golds), golds) == {"rouge_l": 1.0, "bleu": pytest.approx(100)}
    half = task.metrics([Answer("今天下雨")] * 3, golds)["rouge_l"]
    assert half == pytest.approx(2 * 2 / (6 + 4))  # two signs in common
    for fields, message in (
        ({"scored_by": ("rouge",)}, "task.scored_by='rouge'.*rouge_1"),
        ({"scored_by": ()}, "task.scored_by is empty"),
        ({"language": "de"}, "task.language='de'"),
    ):
        with pytest.raises(ConfigError, match=message):
            TASKS["text_to_text"](**fields)


# --- translation


def test_line_n_of_one_file_translates_line_n_of_the_other(tmp_path):
    german, english = (
        ["Guten Tag", "Zwei  Hunde\u2028und", "Ende"],
        ["Hello", "Two dogs", "The end"],
    )
    (tmp_path / "train.de").write_text("\ufeff" + "\r\n".join(german))
    (tmp_path / "train.en.gz").write_bytes(gzip.compress("\n".join([*english, ""]).encode()))
    task = TASKS["translation"](source="de", target="en", prefix="> ")
    expected = [(f"> {a}", b) for a, b in zip(german, english, strict=True)]
    assert pairs(task, tmp_path / "train.de") == expected
    back = TASKS["translation"](source="en", target="de")
    assert pairs(back, tmp_path / "train.en.gz") == list(zip(english, german, strict=True))
    assert (task.language, back.language) == ("en", "")
    ids = [e["id"] for e in task.examples(whole(tmp_path / "train.de"), "train")]
    assert ids == [f"train.de:{n}" for n in (1, 2, 3)]
    # A test file by itself can be translated; a training file cannot be learnt from.
    (tmp_path / "test.de").write_text("Hallo\n")
    assert pairs(task, tmp_path / "test.de", "test") == [("> Hallo", None)]
    with pytest.raises(MissingInput, match=r"test.en does not exist.*translations of .*test.de"):
        pairs(task, tmp_path / "test.de")


def test_files_that_are_not_aligned_are_refused(tmp_path):
    task = TASKS["translation"](source="de", target="en")
    for name, text in (("de", "eins\nzwei\ndrei\n"), ("en", "one\ntwo\n")):
        (tmp_path / f"train.{name}").write_text(text)
    for source, target in (("de", "en"), ("en", "de")):
        with pytest.raises(DataError, match=r"train.\w\w has [23] lines and .*train.\w\w [23];"):
            pairs(TASKS["translation"](source=source, target=target), tmp_path / f"train.{source}")
    (tmp_path / "train.en").write_text("one\n\nthree\n")
    with pytest.raises(DataError, match=r"train.de, line 2: column 'en' is empty"):
        pairs(task, tmp_path / "train.de")


def test_translations_stand_in_the_columns_of_a_table_too(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"fr": "Bonjour", "zh": ["你好", "您好"]}])
    task = TASKS["translation"](source="fr", target="zh")
    assert pairs(task, path) == [("Bonjour", ["你好", "您好"])] and task.language == "zh"
    scores = task.metrics([Answer("您好")], [["你好", "您好"]])
    assert scores["chrf"] == pytest.approx(100)


# --- questions


SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Anna {context} lives in Rome.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where {question}?",
                            "answers": [
                                {"text": "Rome", "answer_start": 24},
                                {"text": "in Rome", "answer_start": 21},
                                {"text": "Rome", "answer_start": 24},
                            ],
                        },
                        {
                            "id": "q2", "question": "Why?", "answers": [], "is_impossible": True,
                            "plausible_answers": [{"text": "Anna", "answer_start": 0}],
                        },
                    ],
                }
            ],
        }
    ]
}  # fmt: skip


def test_questions_are_put_in_words_and_judged_as_squad_does(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(SQUAD))
    task = TASKS["generative_qa"](no_answer="unanswerable")
    found = task.examples(whole(tmp_path / "a.json"), "train")
    context = "Anna {context} lives in Rome."
    assert [(e["id"], e["text"], e["group"]) for e in found] == [
        ("q1", f"question: Where {{question}}? context: {context}", context),
        ("q2", f"question: Why? context: {context}", context),
    ]
    golds = task.golds(found)
    assert golds == [["Rome", "in Rome"], "unanswerable"]
    scores = task.metrics([Answer("the Rome!"), Answer("unanswerable")], golds)
    assert scores == {
        **{"exact_match": 1.0, "f1": 1.0, "exact_match_has_answer": 1.0, "f1_has_answer": 1.0},
        **{"exact_match_no_answer": 1.0, "f1_no_answer": 1.0},
    }
    wrong = task.metrics([Answer("unanswerable"), Answer("Rome")], golds)
    assert set(wrong.values()) == {0.0}
    assert task.mistake(Answer("Rome Italy"), golds[0]) == pytest.approx(1 - 2 / 3)
    with pytest.raises(
        DataError, match=r"question 2 \(q2\): the question has no answer.*no_answer"
    ):
        TASKS["generative_qa"]().examples(whole(tmp_path / "a.json"), "train")
    with pytest.raises(ConfigError, match=r"must hold \{context\}, once"):
        TASKS["generative_qa"](template="{question}?")


@pytest.mark.parametrize(
    "answers",
    ["Rome", ["Rome", "in Rome"], {"text": ["Rome", "Rome"], "answer_start": [1, 2]},
     [{"text": "Rome", "answer_start": 1}]],
)  # fmt: skip
def test_answers_of_a_table_come_in_every_form(tmp_path, answers):
    row = {"context": "c", "question": "q", "answers": answers}
    task = TASKS["generative_qa"](template="{context}|{question}", scored_by=("f1", "rouge_l"))
    (found,) = task.examples(whole(lines(tmp_path / "a.jsonl", [row])), "train")
    several = ["Rome", "in Rome"] if isinstance(answers, list) and answers[1:] else "Rome"
    assert (found["text"], *task.golds([found])) == ("c|q", several)
    assert task.metrics([Answer("rome")], [several]) == {"f1": 1.0, "rouge_l": 1.0}


# --- prompts and conversations


def test_an_instruction_has_what_its_row_has(tmp_path):
    rows = [
        {"prompt": "Add.", "input": "1 + 2", "system": "Be brief.", "response": "3"},
        {"prompt": "Hi", "input": "", "response": ["Hello", "Hi"]},
        {"prompt": "Bye", "system": None, "response": "Bye"},
    ]
    path = lines(tmp_path / "a.jsonl", rows)
    expected = [("Be brief.\n\nAdd.\n\n1 + 2", "3"), ("Hi", ["Hello", "Hi"]), ("Bye", "Bye")]
    assert pairs(TASKS["instruction"](), path) == expected
    task = TASKS["instruction"](input_column="", separator=" | ")
    assert pairs(task, path)[0] == ("Be brief. | Add.", "3")
    with pytest.raises(DataError, match=r"task.system_column='sistem': no row.*mean 'system'"):
        pairs(TASKS["instruction"](system_column="sistem"), path)
    with pytest.raises(DataError, match="line 1: there is no column 'instruction'"):
        pairs(TASKS["instruction"](prompt_column="instruction"), path)
    path = lines(tmp_path / "b.jsonl", [{"prompt": "x", "input": {"a": 1}, "response": "y"}])
    with pytest.raises(DataError, match="line 1: column 'input' holds"):
        pairs(TASKS["instruction"](), path)


def say(*texts, first="user"):
    """Return messages of the user and the assistant in turns."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


TALKS = [
    {"messages": [{"role": "system", "content": "Rhyme."}, *say("a", "b", "c", "d")]},
    {"messages": say("hello", "你好")},
]


def test_the_last_answer_of_a_conversation_is_learnt_or_each(tmp_path):
    path = lines(tmp_path / "a.jsonl", TALKS)
    first = "System: Rhyme.\nUser: a\nAssistant: "
    last = ("System: Rhyme.\nUser: a\nAssistant: b\nUser: c\nAssistant: ", "d")
    other = ("User: hello\nAssistant: ", "你好")
    assert pairs(TASKS["chat"](language=""), path) == [last, other]
    task = TASKS["chat"](language="", every_turn=True)
    assert pairs(task, path) == [(first, "b"), last, other]
    found = task.examples(whole(path), "train")
    assert [e["id"] for e in found] == ["a.jsonl:1#3", "a.jsonl:1#5", "a.jsonl:2"]
    marked = TASKS["chat"](language="", system="<s>", user="<u>", assistant="<a>", end="<e>")
    assert pairs(marked, path)[0] == ("<s>Rhyme.<e><u>a<e><a>b<e><u>c<e><a>", "d")
    asked = lines(tmp_path / "b.jsonl", [{"messages": say("a", "b", "c")}])
    expected = [("User: a\nAssistant: b\nUser: c\nAssistant: ", None)]
    assert pairs(TASKS["chat"](), asked, "test") == pairs(task, asked, "test") == expected


def test_the_answers_of_a_conversation_stay_on_one_side(tmp_path):
    talks = [{"messages": say(f"question {n}", "x", "more?", "y")} for n in range(60)]
    path = lines(tmp_path / "a.jsonl", talks)
    for split in ("hash", "tail"):
        data = DataConfig(path=path, split=split, valid_fraction=0.25)
        ids = {s: [e["id"] for e in TASKS["chat"](every_turn=True).examples(data, s)]
               for s in ("train", "valid")}  # fmt: skip
        sides = {s: {i.partition("#")[0] for i in found} for s, found in ids.items()}
        assert not sides["train"] & sides["valid"] and len(sides["valid"]) > 5
        assert sum(map(len, ids.values())) == 120


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (say("a", "b", "c"), r"line 2: the conversation ends with 'user', so there is no answer"),
        (say("a"), r"line 2: the conversation ends with 'user'"),
        ([{"role": "bot", "content": "x"}], r"line 2, message 1 has the role 'bot'.*system, user"),
        ([{"role": 3, "content": "x"}], r"line 2, message 1 has the role 3"),
        (say("a", " \n"), r"line 2, message 2 \(assistant\) has no text"),
        ([*say("a"), {"role": "assistant", "content": None}], r"line 2, message 2 .* has no text"),
        ([*say("a"), {"role": "assistant"}], r"line 2, message 2 is not \{"),
        (["hello"], r"line 2, message 1 is not \{"),
        ([], r"line 2: column 'messages' must be a list"),
        ("hello", r"line 2: column 'messages' must be a list"),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path, messages, message):
    path = lines(tmp_path / "a.jsonl", [TALKS[0], {"messages": messages}])
    for every in (False, True):
        with pytest.raises(DataError, match=message):
            TASKS["chat"](every_turn=every).examples(whole(path), "train")
    with pytest.raises(DataError, match=r"no column 'talk'.*columns: messages"):
        TASKS["chat"](messages_column="talk").examples(whole(path), "train")
    with pytest.raises(ConfigError, match="must differ"):
        TASKS["chat"](user="> ", assistant="> ")


def test_prompts_of_talk_keep_their_end_and_documents_their_start():
    for name, keep in (("chat", "end"), ("instruction", "end"), ("summarization", None)):
        recipe = {"task": {"name": "text"}}
        choose_task(recipe, name)
        assert recipe["objective"].get("keep") == keep


# --- the published sets


def test_dialogsum_is_read_whole(shared):
    root = shared("data/dialogsum")
    task = TASKS["dialogsum"]()
    data = DataConfig(
        path=str(root / "dev.jsonl"), split="file", valid_path=str(root / "test.jsonl")
    )
    train, valid = (task.examples(data, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (500, 500)
    assert {len(e["references"]) for e in valid} == {3} and "references" not in train[0]
    assert all(e["text"].startswith("summarize: #Person") for e in train)
    scores = task.metrics(task.perfect(task.golds(valid)), task.golds(valid))
    assert set(scores.values()) == {1.0}
    # By its directory, the parts have their published names; this one has no train file.
    whole_set = DataConfig(**{"path": str(root)} | task.defaults["data"])
    assert task.examples(whole_set, "test") == valid and task.examples(whole_set, "valid") == train
    with pytest.raises(MissingInput, match=r"dialogsum/train.jsonl does not exist"):
        task.examples(whole_set, "train")


def test_multi30k_is_read_whole(shared):
    root = shared("data/multi30k")
    task = TASKS["multi30k"]()
    data = DataConfig(**{"path": str(root)} | task.defaults["data"])
    found = {split: task.examples(data, split) for split in ("train", "valid", "test")}
    assert {split: len(part) for split, part in found.items()} == {
        "train": 29000, "valid": 1014, "test": 1000
    }  # fmt: skip
    assert found["train"][0]["text"].startswith("Zwei junge weiße Männer")
    assert found["train"][0]["target"].startswith("Two young, White males")
    other = TASKS["multi30k"](source="en", target="fr")
    back = DataConfig(path=str(root), split="file", valid_path="val", test_path="test_2017_mscoco")
    assert len(other.examples(back, "test")) == 461
    assert other.examples(back, "valid")[0]["target"].startswith("Un groupe d'hommes")
