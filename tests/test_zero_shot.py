"""Answers by likelihood: what is asked, what the scores amount to, which shots are shown."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import load_tokenizer
from flaxlm.data.vocabulary import ByteTokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.requests import Continuation, Masked, Reader, Scores
from flaxlm.tasks import TASKS
from flaxlm.tasks.choices import NORMS, LastWord, MultipleChoice
from flaxlm.tasks.minimal_pairs import Blimp, CrowsPairs, MinimalPairs, StereoSet, common_tokens
from flaxlm.tasks.perplexity import Perplexity
from flaxlm.tasks.task import Answer

RANKED = [name for name, task in TASKS.items() if task.ranks]
BYTES = ByteTokenizer()
# A row or two of every task, under the names of its default columns.
ROWS = {
    "multiple_choice": [
        {"context": "Zwei und", "choices": ["drei sind fünf", "eins"], "gold": 0},
        {"context": "二加三", "choices": ["是五", "是六", "不"], "gold": "B"},
    ],
    "hellaswag": [{"query": "He sat", "choices": ["down.", "up."], "gold": 1}],
    "schema": [{"contexts": ["Das Tor", "二"], "continuation": "ist zu", "gold": "B"}],
    "last_word": [{"context": "a b", "word": "c"}, {"context": "床前明月", "word": "光"}],
    "lambada": [{"context": "I like", "continuation": "signs"}],
    "minimal_pairs": [{"good": "Cats sleep.", "bad": "Cats sleeps."}],
    "blimp": [{"sentence_good": "Cats sleep.", "sentence_bad": "Cats sleeps.", "field": "syntax",
               "linguistics_term": "agreement", "UID": "regular"}],
    "crows_pairs": [{"sent_more": "He is bossy.", "sent_less": "She is bossy.",
                     "bias_type": "gender", "stereo_antistereo": "stereo"}],
    "stereoset": [
        {"id": "1", "bias_type": "race", "target": "Ethiopia", "context": "They live there.",
         "sentences": {"stereotype": "So thin.", "anti-stereotype": "So fat.",
                       "unrelated": "Cats."}},
        {"id": "2", "bias_type": "gender", "target": "nurse", "context": "A BLANK nurse is BLANK.",
         "sentences": {"stereotype": "A kind nurse is kind.", "unrelated": "a sky nurse is sky.",
                       "anti-stereotype": "A bad nurse is bad."}},
    ],
    "perplexity": [{"text": "Some text of a few words, longer than a window"}, {"text": "短"}],
}  # fmt: skip


def file_of(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return DataConfig(path=str(path), split="whole", format="jsonl", field="text")


def task_of(name):
    return TASKS[name](window=8, stride=3) if name == "perplexity" else TASKS[name]()


def random_scores(asked, seed=0):
    """Return scores as a model would give them, drawn at random."""
    rng = np.random.default_rng(seed)
    count = [len(r.rows) if isinstance(r, Masked) else len(r.continuation) for r in asked]
    tokens = [-rng.exponential(2.0, n).astype(np.float32) for n in count]
    return Scores(tokens, rng.random(len(asked)) < 0.5, np.zeros(len(asked), bool))


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_every_task_asks_every_family_and_scores_what_it_hears(tmp_path, name, family):
    task = task_of(name)
    examples = task.examples(file_of(tmp_path / "a.jsonl", ROWS[name]), "valid")
    assert len(examples) == len(ROWS[name])
    if name == "perplexity" and family != "decoder":
        with pytest.raises(ConfigError, match=f"model '{family}' does not read that way"):
            task.requests(examples, Reader(BYTES, family))
        return
    asked = task.requests(examples, Reader(BYTES, family))
    kind = Masked if family == "encoder" else Continuation
    assert len(asked) == len(examples)
    assert all(isinstance(r, kind) for requests in asked for r in requests)
    heard = [random_scores(requests, seed) for seed, requests in enumerate(asked)]
    answers = task.postprocess({"scores": heard, "masked": family == "encoder"}, examples)
    golds = task.golds(examples)
    scores, intervals = task.metrics(answers, golds), task.intervals(answers, golds)
    assert scores and set(intervals) >= set(scores) - {"tokens"}
    for metric, (low, high) in intervals.items():
        assert low <= high and math.isfinite(high)
        if "perplexity" not in metric and metric != "bits_per_byte":
            assert low >= 0 and high <= 1 and 0 <= scores[metric] <= 1
    for example, gold, answer in zip(examples, golds, answers, strict=True):
        shown = [task.show_input(example), task.show(gold), task.show(answer.value)]
        json.dumps(shown)
        assert task.mistake(answer, gold) >= 0
    assert TASKS[name].defaults["data"]["split"] == "whole"


def given_scores(*rows):
    return Scores([np.array(row, np.float32) for row in rows], np.zeros(len(rows)), np.zeros(1))


def test_each_norm_picks_the_choice_that_its_definition_picks():
    rng = np.random.default_rng(0)
    task, examples, heard = MultipleChoice(normalize=tuple(NORMS)), [], []
    for _ in range(200):
        choices = ["é" * rng.integers(1, 9) + "a" * rng.integers(1, 9) for _ in range(4)]
        examples.append({"choices": choices, "gold": int(rng.integers(4)), "groups": ()})
        rows = [-rng.exponential(1.0, rng.integers(1, 6)) for _ in choices]
        heard.append(given_scores(*rows, *[-rng.exponential(1.0, len(row)) for row in rows]))
    answers = task.postprocess({"scores": heard, "masked": False}, examples)
    hits = dict.fromkeys(task.norms, 0)
    for example, scores in zip(examples, heard, strict=True):
        best = dict.fromkeys(task.norms, (-math.inf, -1))
        for i, choice in enumerate(example["choices"]):
            total = sum(map(float, scores.tokens[i]))
            values = {
                "acc": total,
                "acc_norm": total / len(choice),
                "acc_tokens": total / len(scores.tokens[i]),
                "acc_bytes": total / len(choice.encode("utf-8")),
                "acc_uncond": total - sum(map(float, scores.tokens[i + 4])),
            }
            for name, value in values.items():
                if value > best[name][0]:
                    best[name] = value, i
        for name in task.norms:
            hits[name] += best[name][1] == example["gold"]
    found = task.metrics(answers, task.golds(examples))
    assert found == {name: count / 200 for name, count in hits.items()}
    assert len(set(hits.values())) > 2


def choices_of(tmp_path, rows, **fields):
    return MultipleChoice(**fields).examples(file_of(tmp_path / "c.jsonl", rows), "test")


@pytest.mark.parametrize(("gold", "index"), [(2, 2), ("2", 2), ("C", 2), ("c", 2), ("bb", 1)])
def test_a_right_choice_is_a_number_a_letter_or_a_text(tmp_path, gold, index):
    (example,) = choices_of(
        tmp_path, [{"context": "x", "choices": ["aa", "bb", "cc"], "gold": gold}]
    )
    assert example["gold"] == index and example["solved"] == ["aa", "bb", "cc"][index]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": 3}, "line 1: column 'gold' holds 3, which is none of the 2 choices"),
        ({"gold": "zz"}, 'holds "zz", which is none of the 2 choices'),
        ({"gold": True}, "column 'gold' holds true, not a text"),
        ({"choices": ["a"]}, "column 'choices' holds .*, not a list of two or more texts"),
        ({"choices": ["a", " "]}, "not a list of two or more texts"),
        ({"choices": "a or b"}, "columns of one text each go into task.choice_columns"),
        ({"context": " "}, "column 'context' is empty"),
    ],
)
def test_a_bad_row_of_choices_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        choices_of(tmp_path, [{"context": "x", "choices": ["a", "b"], "gold": 0} | row])


def test_choices_may_stand_in_columns_and_a_test_split_may_have_no_answers(tmp_path):
    (tmp_path / "c.csv").write_text(",question,one,two\n0,why?,because,so\n")
    data = DataConfig(path=str(tmp_path / "c.csv"), split="whole")
    task = MultipleChoice(context_column="question", choice_columns=("one", "two"))
    (example,) = task.examples(data, "test")  # the first column has no name
    assert example["choices"] == ["because", "so"] and task.golds([example]) == [None]
    with pytest.raises(DataError, match="there is no column 'gold'"):
        task.examples(data, "valid")


QUIZ = [{"context": f"{i} + 1 =", "choices": [str(i + 1), str(i)], "gold": 0} for i in range(12)]


def shots_of(prompt):
    return prompt.split("\n\n")[:-1]


def test_shots_are_other_solved_examples_chosen_by_seed_and_id_alone(tmp_path):
    found = choices_of(tmp_path, QUIZ, shots=3, seed=5)
    for i, example in enumerate(found):
        shots = shots_of(example["text"])
        assert example["text"].endswith(f"\n\n{i} + 1 =") and len(set(shots)) == 3
        assert set(shots) <= {f"{j} + 1 = {j + 1}" for j in range(12) if j != i}
    other = choices_of(tmp_path, QUIZ, shots=3, seed=6)
    assert sum(a["text"] != b["text"] for a, b in zip(found, other, strict=True)) > 8
    # Elsewhere, later, and whoever else is asked: the same shots.
    (tmp_path / "pool.jsonl").write_text((tmp_path / "c.jsonl").read_text())
    (tmp_path / "there").mkdir()
    fields = dict(shots=3, seed=5, shots_path=str(tmp_path / "pool.jsonl"))
    fewer = choices_of(tmp_path / "there", QUIZ[:4], **fields)
    assert [e["text"] for e in fewer] == [e["text"] for e in found[:4]]
    # More shots begin with the fewer.
    more = choices_of(tmp_path, QUIZ, shots=5, seed=5)
    assert [shots_of(e["text"])[:3] for e in more] == [shots_of(e["text"]) for e in found]
    # Each example is drawn about as often as the others.
    shown = [shot for example in more for shot in shots_of(example["text"])]
    counts = [shown.count(f"{j} + 1 = {j + 1}") for j in range(12)]
    assert sum(counts) == 60 and max(counts) < 12


def test_an_example_is_not_its_own_shot_even_from_another_row(tmp_path):
    rows = [QUIZ[0]] * 9 + [QUIZ[1]]
    found = choices_of(tmp_path, rows, shots=1)
    assert [e["text"] for e in found[:9]] == ["1 + 1 = 2\n\n0 + 1 ="] * 9
    assert found[9]["text"] == "0 + 1 = 1\n\n1 + 1 ="
    with pytest.raises(ConfigError, match=r"task.shots=2 needs more .* than the 2 of"):
        choices_of(tmp_path, rows, shots=2)
    with pytest.raises(ConfigError, match="shots_path names solved examples"):
        MultipleChoice(shots_path="x.jsonl")


def test_a_prompt_is_put_together_as_asked(tmp_path):
    fields = dict(instruction="Rechne.", shots=1, separator="\n", joint="")
    rows = [{"context": "一加一是", "word": "二"}, {"context": "二加二是", "word": "四"}]
    data = file_of(tmp_path / "w.jsonl", rows)
    task = LastWord(**fields)
    examples = task.examples(data, "valid")
    assert examples[0]["text"] == "Rechne.\n二加二是四\n一加一是"
    (asked,) = task.requests(examples, Reader(BYTES, "decoder"))[0]
    whole = [BYTES.bos_id, *BYTES.encode("Rechne.\n二加二是四\n一加一是二")]
    assert [*asked.context, *asked.continuation] == whole
    assert BYTES.decode(asked.continuation) == "二"


def test_last_words_are_found_greedily_and_cost_nats(tmp_path):
    data = file_of(tmp_path / "w.jsonl", [{"context": t} for t in ("a b cd ", "x\ny", "p q")])
    task = LastWord(word_column="")
    examples = task.examples(data, "train")
    assert [(e["text"], e["gold"]) for e in examples] == [("a b", "cd"), ("x", "y"), ("p", "q")]
    heard = [Scores([np.array(t, np.float32)], np.array([g]), np.zeros(1)) for t, g in
             (([-1.0, -2.0], True), ([-0.5], False), ([-4.0], True))]  # fmt: skip
    answers = task.postprocess({"scores": heard, "masked": False}, examples)
    scores = task.metrics(answers, task.golds(examples))
    assert scores["acc"] == pytest.approx(2 / 3)
    assert scores["perplexity"] == pytest.approx(math.exp(7.5 / 3))
    assert [task.mistake(a, None) for a in answers] == [0, 0.5, 0]
    with pytest.raises(DataError, match="holds one word"):
        task.examples(file_of(tmp_path / "w.jsonl", [{"context": "one "}]), "train")


def test_pairs_are_scored_by_group_and_a_tie_is_not_right():
    rng = np.random.default_rng(1)
    task, examples = Blimp(), []
    for _ in range(300):
        groups = (f"field={rng.integers(3)}", f"UID={rng.integers(9)}")
        examples.append({"gold": "good", "groups": groups})
    heard = [given_scores([-1.0, -1.0], [-2.0])]  # a tie
    heard += [given_scores(*(-rng.exponential(1.0, (2, 4)))) for _ in examples[1:]]
    answers = task.postprocess({"scores": heard, "masked": False}, examples)
    right = [
        float(s.tokens[0].sum(dtype=float)) > float(s.tokens[1].sum(dtype=float)) for s in heard
    ]
    assert answers[0].value == "" and not right[0]
    found = task.metrics(answers, task.golds(examples))
    assert found["acc"] == np.mean(right)
    for group in {group for example in examples for group in example["groups"]}:
        of = [r for r, e in zip(right, examples, strict=True) if group in e["groups"]]
        assert found[f"acc/{group}"] == pytest.approx(np.mean(of))
    assert len(found) == 1 + 3 + 9


def test_a_masked_model_is_asked_for_the_tokens_that_both_sentences_share(shared):
    tokenizer = load_tokenizer(shared("weights/vocab/bert-base-uncased"))
    data = DataConfig(
        path=str(shared("data/crows_pairs/crows_pairs_anonymized.csv")), split="whole"
    )
    examples = CrowsPairs().examples(data, "valid")
    assert len(examples) == 1508
    assert {e["groups"][0] for e in examples} >= {"bias_type=gender", "bias_type=disability"}
    alike = 0
    for example in examples[:200]:
        sides = common_tokens(tokenizer, example["text"], example["text_pair"])
        judged = [[ids[place] for ids, _, place in side.rows] for side in sides]
        assert judged[0] == judged[1] and judged[0]
        texts = [tokenizer.encode(example[key]) for key in ("text", "text_pair")]
        if len(texts[0]) == len(texts[1]):  # no token moved: those in equal places, no others
            same = [a for a, b in zip(*texts, strict=True) if a == b]
            alike += judged[0] == same
    assert alike > 100


def slow_stereoset(rows):
    """Score (target, pro, anti, unrelated) likelihoods by the paper's definitions (section 6)."""
    by_target = {}
    for target, pro, anti, unrelated in rows:
        entry = by_target.setdefault(target, [0, 0, 0])
        entry[0] += 1
        entry[1] += (pro > unrelated) + (anti > unrelated)
        entry[2] += pro > anti
    lm = sum(100 * related / (2 * total) for total, related, _ in by_target.values())
    ss = sum(100 * stereo / total for total, _, stereo in by_target.values())
    lm, ss = lm / len(by_target), ss / len(by_target)
    return lm, ss, lm * min(ss, 100 - ss) / 50


def test_stereoset_scores_are_means_over_targets():
    rng = np.random.default_rng(2)
    task, examples, heard, rows = StereoSet(), [], [], []
    for _ in range(400):
        kind = ("intrasentence", "intersentence")[rng.integers(2)]
        groups = (f"task={kind}", f"bias_type={rng.integers(3)}")
        examples.append({"kind": kind, "target": str(rng.integers(30)), "groups": groups})
        tokens = [-rng.exponential(1.0, rng.integers(1, 5)) for _ in range(3)]
        heard.append(given_scores(*tokens))
        rows.append((examples[-1]["target"], *(float(t.mean()) for t in tokens)))
    answers = task.postprocess({"scores": heard, "masked": False}, examples)
    golds = task.golds(examples)
    found, intervals = task.metrics(answers, golds), task.intervals(answers, golds)

    def check(suffix, chosen):
        slow = dict(zip(("lm", "ss", "icat"), slow_stereoset(chosen), strict=True))
        for name, value in slow.items():
            assert found[name + suffix] == pytest.approx(value / 100)
            low, high = intervals[name + suffix]
            assert low <= found[name + suffix] + 0.02 and high >= found[name + suffix] - 0.02

    check("", rows)
    for group in {group for example in examples for group in example["groups"]}:
        members = zip(rows, examples, strict=True)
        check(f"/{group}", [row for row, example in members if group in example["groups"]])
    # A masked model's word is as likely as its tokens on average, by probability.
    uneven = given_scores([-0.1, -6.0], [-1.0, -1.0], [-9.0])
    triple = [{"kind": "intrasentence"}]
    assert task.postprocess({"scores": [uneven], "masked": True}, triple)[0].value["stereotype"]
    other = task.postprocess({"scores": [uneven], "masked": False}, triple)[0]
    assert not other.value["stereotype"]


def test_every_blank_of_stereoset_is_filled_with_one_word(shared):
    data = DataConfig(path=str(shared("data/stereoset/dev.jsonl")), split="whole")
    examples = StereoSet().examples(data, "valid")
    assert len(examples) == 4229 and sum(e["kind"] == "intrasentence" for e in examples) == 2106
    for example in examples:
        for word, sentence in zip(example["words"], example["sentences"], strict=False):
            assert " " not in word and word in sentence
    reader = Reader(BYTES, "encoder")
    (first,) = [e for e in examples if "hispanic nurse" in e["sentences"][1]][:1]
    stereo = StereoSet().requests([first], reader)[0][0]
    ids, _, place = stereo.rows[0]
    assert BYTES.decode(ids[:place]) == "I am a" and BYTES.decode(ids[place + 1 :]) == " nurse."
    assert BYTES.decode([row[0][row[2]] for row in stereo.rows]) == " male"


def test_a_blank_that_its_sentence_does_not_fill_is_named(tmp_path):
    row = ROWS["stereoset"][1]
    bad = row | {"sentences": row["sentences"] | {"unrelated": "A sky nurse is sea."}}
    with pytest.raises(DataError, match=r"line 1: 'A sky nurse is sea.' is not .* one word"):
        StereoSet().examples(file_of(tmp_path / "s.jsonl", [bad]), "valid")
    with pytest.raises(DataError, match="must hold a text for each of stereotype, anti-"):
        short = row | {"sentences": {"stereotype": "x"}}
        StereoSet().examples(file_of(tmp_path / "s.jsonl", [short]), "valid")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 12), st.data())
def test_perplexity_counts_every_token_byte_and_word_once(lengths, window, data):
    task = Perplexity(window=window, stride=data.draw(st.integers(1, window)))
    texts = ["é x"[: 1 + n % 3] * n for n in lengths]
    examples = [{"id": str(i), "text": text, "groups": ()} for i, text in enumerate(texts)]
    limit = data.draw(st.one_of(st.none(), st.integers(1, 20)))
    asked = task.requests(examples, Reader(BYTES, "decoder", limit))
    reads = [len(c) + len(j) - 1 for requests in asked for c, j in requests]
    assert max(reads) <= min(window, limit or window)
    heard = [random_scores(requests, i) for i, requests in enumerate(asked)]
    answers = task.postprocess({"scores": heard, "masked": False}, examples)
    found = task.metrics(answers, task.golds(examples))
    nats = -sum(float(values.sum(dtype=float)) for scores in heard for values in scores.tokens)
    sizes = sum(len(text.encode()) for text in texts)
    assert found["tokens"] == sizes  # a byte is a token here
    assert found["perplexity"] == pytest.approx(math.exp(nats / sizes))
    assert found["bits_per_byte"] == pytest.approx(nats / sizes / math.log(2))
    words = sum(len(text.split()) for text in texts)
    assert found["word_perplexity"] == pytest.approx(math.exp(min(nats / max(words, 1), 700)))


def test_a_text_in_a_split_of_its_own_is_judged_alone(tmp_path):
    rows = [{"text": f"document {i} with words"} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(tmp_path / "a.jsonl"), split="hash", valid_fraction=0.3)
    parts = [Perplexity().examples(data, split) for split in ("train", "valid")]
    assert sum(map(len, parts)) == 200 and 30 < len(parts[1]) < 90
    whole = Perplexity().examples(DataConfig(path=data.path, split="whole"), "valid")
    assert [e["text"] for e in whole] == [row["text"] for row in rows]


def test_minimal_pairs_read_any_columns(tmp_path):
    rows = [{"ok": "a", "not": "b", "kind": "x"}]
    task = MinimalPairs(good_column="ok", bad_column="not", group_columns=("kind",))
    (example,) = task.examples(file_of(tmp_path / "p.jsonl", rows), "valid")
    assert task.show_input(example) == {"good": "a", "bad": "b"} and example["groups"] == (
        "kind=x",
    )
    assert task.mistake(Answer("bad", 0.9, [0.1, 0.9]), task.golds([example])[0]) == 0.9
