"""Choices by likelihood: what is computed for them, schemas, contexts that end in white space."""

import itertools

import numpy as np
import pytest
from test_zero_shot import BYTES, file_of

from flaxlm.data.sources import DataConfig
from flaxlm.data.tokenizer import load_tokenizer
from flaxlm.errors import ConfigError, DataError
from flaxlm.inference.requests import Continuation, Reader, Scores
from flaxlm.tasks import TASKS
from flaxlm.tasks.choices import HellaSwag, LastWord, MultipleChoice
from flaxlm.tasks.minimal_pairs import StereoSet
from flaxlm.tasks.schema import Schema

QUIZ = [
    {"context": f"{i} plus 1 is", "choices": [str(i + 1), "no", "é"], "gold": i % 3}
    for i in range(6)
]
DECODER = Reader(BYTES, "decoder")


def bigrams(seed=0):
    """Return log-probabilities [V, V] of a token after another."""
    values = np.random.default_rng(seed).normal(size=(BYTES.vocab_size, BYTES.vocab_size))
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def heard(asked, table):
    """Return the scores of a model that looks at one token."""
    tokens = []
    for context, continuation in asked:
        ids = [context[-1], *continuation]
        tokens.append(np.array([table[pair] for pair in itertools.pairwise(ids)]))
    return Scores(tokens, np.zeros(len(asked), bool), np.zeros(len(asked), bool))


def scored(task, data, split="valid"):
    """Return (scores, requests of each example, answers) under `bigrams`."""
    examples = task.examples(data, split)
    asked, table = task.requests(examples, DECODER), bigrams()
    outputs = {"scores": [heard(requests, table) for requests in asked], "masked": False}
    answers = task.postprocess(outputs, examples)
    return task.metrics(answers, task.golds(examples)), asked, answers


def test_only_the_normalizations_that_are_named_are_computed(tmp_path):
    data = file_of(tmp_path / "quiz.jsonl", QUIZ)
    every = ("characters", "tokens", "bytes", "unconditional")
    names = dict(zip(every, ("acc_norm", "acc_tokens", "acc_bytes", "acc_uncond"), strict=True))
    whole, twice, _ = scored(MultipleChoice(normalize=every), data)
    assert list(whole) == ["acc", *names.values()]
    for count in range(5):
        for chosen in itertools.combinations(every, count):
            task = MultipleChoice(normalize=chosen)
            scores, asked, _ = scored(task, data)
            assert scores == {name: whole[name] for name in ("acc", *(names[c] for c in chosen))}
            # The choices behind the beginning of a text are asked for where they are needed.
            size = 6 if "unconditional" in chosen else 3
            assert asked == [requests[:size] for requests in twice]
    for task in (MultipleChoice(), HellaSwag(context_column="context")):
        scores, asked, _ = scored(task, data)
        assert list(scores) == ["acc", "acc_norm", "acc_tokens", "acc_bytes"]
        assert {len(requests) for requests in asked} == {3}


def test_what_cannot_be_normalized_by_is_refused_with_what_can():
    with pytest.raises(ConfigError, match=r"task.normalize='letters'.*characters, tokens, bytes"):
        MultipleChoice(normalize=("bytes", "letters"))
    with pytest.raises(ConfigError, match=r"task.normalize does not name 'unconditional'"):
        MultipleChoice(unconditional="Answer:")
    MultipleChoice(unconditional="Answer:", normalize=("unconditional",))


SCHEMA = [
    {"contexts": ["The cup is in the bag because the cup", "The cup is in the bag because the bag"],
     "continuation": "is small.", "gold": 0},
    {"contexts": ["Wasser", "二", "é"], "continuation": "da", "gold": "B"},
    {"contexts": ["a", "b"], "continuation": "c d", "gold": "b"},
    {"contexts": ["x", "y "], "continuation": "z", "gold": "1"},
]  # fmt: skip


def test_a_schema_takes_the_context_that_its_continuation_is_likeliest_behind(tmp_path):
    scores, asked, answers = scored(Schema(), file_of(tmp_path / "s.jsonl", SCHEMA))
    table, right = bigrams(), []
    for row, requests, answer, gold in zip(SCHEMA, asked, answers, (0, 1, 1, 1), strict=True):
        totals = []
        for context in row["contexts"]:
            whole = [BYTES.bos_id, *BYTES.encode(f"{context} {row['continuation']}")]
            first = 1 + len(BYTES.encode(context.rstrip()))
            totals.append(sum(table[whole[i - 1], whole[i]] for i in range(first, len(whole))))
        assert len(requests) == len(totals) and answer.value == int(np.argmax(totals))
        share = np.exp(totals) / np.exp(totals).sum()
        np.testing.assert_allclose(answer.scores, share, rtol=1e-6)
        assert answer.score == max(answer.scores)
        right.append(answer.value == gold)
    assert scores == {"acc": np.mean(right)} and 0 < np.mean(right) < 1


def test_the_contexts_of_a_schema_may_stand_in_columns_and_behind_solved_ones(tmp_path):
    (tmp_path / "s.csv").write_text("one,two,rest,answer\na,b,c,A\nd,e,f,B\n")
    data = DataConfig(path=str(tmp_path / "s.csv"), split="whole")
    names = {"context_columns": ("one", "two"), "continuation_column": "rest"}
    task = Schema(**names, gold_column="answer", shots=1, separator="\n", instruction="Solve.")
    (asked, _) = task.requests(task.examples(data, "valid"), DECODER)
    for request, context in zip(asked, "ab", strict=True):
        assert BYTES.decode(request.context) == f"Solve.\ne f\n{context}"
        assert BYTES.decode(request.continuation) == " c"
    # A test file without answers is answered; its own rows solve nothing.
    (tmp_path / "s.csv").write_text("one,two,rest\na,b,c\nd,e,f\n")
    task = Schema(**names)
    examples = task.examples(data, "test")
    assert task.golds(examples) == [None, None] and len(task.requests(examples, DECODER)[0]) == 2
    with pytest.raises(ConfigError, match=r"needs more solved examples .* than the 0 of"):
        Schema(**names, shots=1).examples(data, "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": 2}, "line 1: column 'gold' holds 2, which is none of the 2 choices"),
        ({"contexts": ["a"]}, "'contexts' holds .*columns of one text each go into task.context_c"),
        ({"continuation": " "}, "line 1: column 'continuation' is empty"),
    ],
)
def test_a_bad_row_of_a_schema_is_named(tmp_path, row, message):
    data = file_of(tmp_path / "s.jsonl", [SCHEMA[0] | row])
    with pytest.raises(DataError, match=message):
        Schema().examples(data, "valid")


ENDING = {
    "multiple_choice": [{"context": "ab \n", "choices": ["c", "d"], "gold": 0}],
    "schema": [{"contexts": ["ab \n", "b \n"], "continuation": "c", "gold": 0}],
    "last_word": [{"context": "ab \n", "word": "c"}],
}


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_white_space_at_the_end_of_a_context_goes_to_what_follows(tmp_path, name, family):
    """Of bytes: `ab` is read, and space, newline, space, `c` are judged."""
    task = TASKS[name]()
    examples = task.examples(file_of(tmp_path / "a.jsonl", ENDING[name]), "valid")
    asked = task.requests(examples, Reader(BYTES, family))[0][0]
    a, b, c, space, line = (BYTES.encode(character)[0] for character in "abc \n")
    judged = (space, line, space, c)
    if family == "decoder":
        assert asked == Continuation((BYTES.bos_id, a, b), judged)
    elif family == "encoder_decoder":
        assert asked == Continuation((a, b, BYTES.eos_id), judged)
    else:
        ids, _, place = asked.rows[0]
        assert ids[:place] == (BYTES.cls_id, a, b)
        assert tuple(ids[place] for ids, _, place in asked.rows) == judged


def test_a_space_before_a_word_is_part_of_it_as_in_the_vocabulary(shared, tmp_path):
    gpt2 = load_tokenizer(shared("weights/vocab/gpt2"))
    hello, world, there = 15496, 995, 612  # "Hello", " world", " there"
    rows = [{"context": "Hello ", "choices": ["world", "there"], "gold": 0}]
    task = MultipleChoice(joint="")
    asked = task.requests(task.examples(file_of(tmp_path / "a.jsonl", rows), "valid"),
                          Reader(gpt2, "decoder"))[0]  # fmt: skip
    assert [continuation for _, continuation in asked] == [(world,), (there,)]
    assert {context for context, _ in asked} == {(gpt2.bos_id, hello)}


def test_the_sentence_before_another_gives_its_last_blanks_away():
    example = {"kind": "intersentence", "text": "a ", "sentences": ["b", "c", "b"]}
    a, b, space = (BYTES.encode(character)[0] for character in "ab ")
    ((pair, _, _),) = StereoSet().requests([example], Reader(BYTES, "encoder"))
    ids, _, place = pair.rows[0]
    assert ids == (BYTES.cls_id, a, BYTES.sep_id, space, b, BYTES.sep_id) and place == 3
    ((text, _, _),) = StereoSet().requests([example], DECODER)
    assert text == Continuation((BYTES.bos_id, a), (space, space, b))


def test_last_words_behind_blanks_are_those_of_the_whole_text(tmp_path):
    data = file_of(tmp_path / "w.jsonl", [{"context": "  so it\tgoes \n"}])
    task = LastWord(word_column="")
    (example,) = task.examples(data, "valid")
    assert (example["text"], example["gold"]) == ("so it", "goes")


@pytest.mark.parametrize("gold", ["2", "A"])
def test_a_gold_that_means_two_choices_is_refused_with_a_way_out(gold, tmp_path):
    row = {"context": "1 plus 1 is", "choices": ["1", "A", "0", "2"], "gold": gold}
    with pytest.raises(DataError, match=f"line 1: .*'{gold}', which is the text of") as error:
        MultipleChoice().examples(file_of(tmp_path / "a.jsonl", [row]), "valid")
    for written in str(error.value).partition("write ")[2].partition(",")[0].split(" or "):
        data = file_of(tmp_path / f"{written}.jsonl", [row | {"gold": written}])
        assert MultipleChoice().examples(data, "valid")[0]["gold"] == int(written)
    plain = row | {"choices": ["x", "2", "no"], "gold": "no"}
    data = file_of(tmp_path / "plain.jsonl", [plain])
    assert MultipleChoice().examples(data, "valid")[0]["gold"] == 2
