"""What stands in the rows of the supervised objectives, and what every objective refuses."""

import pytest
from fakes import BOS, EOS
from test_objectives import LENGTH, TOKENIZER, all_rows

from flaxlm.errors import ConfigError, DataError
from flaxlm.objectives import (
    OBJECTIVES,
    CausalLM,
    Classification,
    MaskedLM,
    SpanCorruption,
    TextToText,
)


def ids(text):
    return TOKENIZER.encode(text)


EXAMPLES = [
    {"id": "a", "text": "hello", "label": 1, "target": "hi"},
    {"id": "b", "text": "abcdefghijklmnopqrstuvwxyzABCDEF", "label": 0, "target": "0123456789abc"},
]
PAIRS = [
    {"text": "hello", "text_pair": "you", "label": 1},
    {"text": "abcdefghijklmnopqrstuvwxyz", "text_pair": "0123456789abcdefgh", "label": 0},
    {"text": "abcdefghijklmnopqrstuvwxyz", "text_pair": "012", "label": 0},
]


PROMPTS = [example | {"target": "so"} for example in PAIRS]


def real(batch, row, prefix=""):
    return batch[f"{prefix}tokens"][row][batch[f"{prefix}segment_ids"][row] > 0].tolist()


def test_classification_rows_of_each_family():
    objective = Classification(labels=("no", "yes"))
    batch = all_rows(objective, EXAMPLES)
    assert real(batch, 0) == [BOS, *ids("hello"), EOS] and not batch["token_types"].any()
    assert real(batch, 1) == [BOS, *ids(EXAMPLES[1]["text"])[: LENGTH - 2], EOS]
    assert batch["labels"].tolist() == [1, 0]
    batch = all_rows(objective, PAIRS)
    assert real(batch, 0) == [BOS, *ids("hello"), EOS, *ids("you"), EOS]
    assert batch["token_types"][0].tolist()[:12] == [0] * 7 + [1] * 4 + [0]
    room = LENGTH - 3
    assert len(real(batch, 1)) == len(real(batch, 2)) == LENGTH
    second = ids(PAIRS[1]["text_pair"])[: room // 2]
    assert real(batch, 1)[-len(second) - 1 : -1] == second  # both keep half
    assert real(batch, 2)[-4:-1] == ids("012")  # the longer is cut
    decoder = all_rows(objective.for_model("decoder"), EXAMPLES)
    assert real(decoder, 0) == [BOS, *ids("hello"), EOS] and "token_types" not in decoder
    text = all_rows(objective.for_model("encoder_decoder"), EXAMPLES)
    assert real(text, 0, "encoder_") == [*ids("hello"), EOS]
    assert real(text, 0) == [0, *ids("yes")]
    assert text["targets"][0].tolist() == [*ids("yes"), EOS, 0]
    assert text["label_tokens"][1].tolist() == [[*ids("no"), EOS, 0, 0], [*ids("yes"), EOS, 0]]


def test_text_to_text_rows_of_each_family():
    objective = TextToText(target_length=6)
    batch = all_rows(objective, EXAMPLES)
    assert real(batch, 0, "encoder_") == [*ids("hello"), EOS]
    assert real(batch, 0) == [0, *ids("hi")]
    assert batch["targets"][0].tolist() == [*ids("hi"), EOS, 0, 0, 0]
    assert batch["targets"][1].tolist() == [*ids("01234"), EOS]
    assert batch["weights"].sum() == 3 + 6
    decoder = all_rows(objective.for_model("decoder"), EXAMPLES)
    assert real(decoder, 0) == [BOS, *ids("hello"), EOS, *ids("hi")]
    scored = decoder["weights"] > 0
    assert decoder["targets"][0][scored[0]].tolist() == [*ids("hi"), EOS]
    assert decoder["targets"][1][scored[1]].tolist() == [*ids("01234"), EOS]
    assert len(real(decoder, 1)) == LENGTH


@pytest.mark.parametrize("model", ["encoder_decoder", "decoder"])
def test_the_prompt_is_what_stands_before_the_target(model):
    objective = TextToText(target_length=6, model=model)
    for examples in (EXAMPLES, PROMPTS):
        batch = all_rows(objective, examples)
        plan = objective.plan(examples, LENGTH, TOKENIZER, seed=0, shuffle=False)
        for row, prompt in enumerate(objective.prompts(plan)):
            if model == "decoder":
                given = int((batch["weights"][row] > 0).argmax()) + 1
                assert batch["tokens"][row][:given].tolist() == prompt
            else:
                assert real(batch, row, "encoder_") == prompt


def test_a_persons_prompt_is_put_as_one_of_training_was():
    objective = TextToText(target_length=6, model="decoder")
    plan = objective.plan(EXAMPLES, LENGTH, TOKENIZER, seed=0, shuffle=False)
    assert objective.request(EXAMPLES[0]["text"], TOKENIZER) == objective.prompts(plan)[0]
    # Generation puts the EOS behind a text that an encoder reads, and a language model goes on.
    assert TextToText().request("hello", TOKENIZER) == "hello"
    assert CausalLM().request("hello", TOKENIZER) == "hello"


def test_truncation_is_counted():
    plan = TextToText(target_length=6).plan(EXAMPLES, LENGTH, TOKENIZER, seed=0, shuffle=False)
    assert plan.report["truncated"] == 1 and plan.report["truncated_targets"] == 1
    plan = Classification(labels=("a", "b")).plan(PAIRS, LENGTH, TOKENIZER, seed=0, shuffle=False)
    assert plan.report["truncated"] == 2 and plan.report["examples"] == 3


@pytest.mark.parametrize(
    "example,match",
    [
        ({"id": "x", "text": "a", "label": 2}, "example x: label 2 is not in 0 … 1"),
        ({"id": "x", "text": "a", "label": -1}, "label -1"),
        ({"id": "x", "label": 0}, "example x: 'text' is NoneType.*the example has: id, label"),
        ({"id": "x", "text": "a", "label": "yes"}, "'label' is str, a int is needed"),
    ],
)
def test_wrong_examples_are_named(example, match):
    with pytest.raises(DataError, match=match):
        Classification(labels=("a", "b")).plan(
            [EXAMPLES[0], example], LENGTH, TOKENIZER, seed=0, shuffle=False
        )


def test_no_examples_is_an_error():
    with pytest.raises(DataError, match="no examples"):
        TextToText().plan([], LENGTH, TOKENIZER, seed=0, shuffle=False)


# --- refusals


@pytest.mark.parametrize(
    "name,model,match",
    [
        ("masked_lm", "decoder", "works on: encoder"),
        ("causal_lm", "encoder", "works on: decoder, recurrent"),
        ("span_corruption", "decoder", "works on: encoder_decoder"),
        ("text_to_text", "encoder", "works on: decoder, encoder_decoder, recurrent"),
        ("causal_lm", "decodr", "did you mean 'decoder'"),
    ],
)
def test_impossible_pairs_are_refused(name, model, match):
    with pytest.raises(ConfigError, match=match):
        OBJECTIVES[name]().heads(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CausalLM(prefix=True).heads("recurrent"),
        lambda: MaskedLM(rate=1.5),
        lambda: MaskedLM(mask_share=0.8, random_share=0.3),
        lambda: SpanCorruption(density=0.0),
        lambda: SpanCorruption(mean_span=0.5),
        lambda: CausalLM(label_smoothing=1.0),
        lambda: Classification(labels=("one",)),
        lambda: (
            TextToText(target_length=100).plan(
                [{"text": "a", "target": "b" * 90}], 64, TOKENIZER, seed=0, shuffle=False
            )
            and TextToText(target_length=100, model="decoder").plan(
                [{"text": "a", "target": "b" * 90}], 64, TOKENIZER, seed=0, shuffle=False
            )
        ),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()
