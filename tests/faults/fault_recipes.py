"""One tiny run of every recipe family: a few updates, evaluations and saves inside.

`write_data` makes the files, `RECIPES` are the configs, with `{root}` for the folder of the files.
"""

import copy
import json
import pathlib
import random

WORDS = "the sea was calm and grey that day we rowed to a far green island under rain".split()
# What compiles quickly.
SIZE = dict(width=16, num_layers=1, num_heads=2, max_length=64)
QUICK = SIZE | dict(scan_layers=False, remat="none", norm="rmsnorm")
DECODER, ENCODER = dict(name="decoder", **QUICK), dict(name="encoder", token_types=2, **QUICK)
BOTH = dict(name="encoder_decoder", positions="relative", **QUICK)
LSTM = dict(name="recurrent", width=16, num_layers=1)

BASE = dict(
    tokenizer=dict(kind="byte"),
    optimizer=dict(learning_rate=1e-2, schedule="constant"),
    train=dict(steps=8, batch_size=8, length=24, log_every=1),
    eval=dict(every=3, batch_size=8),
    checkpoint=dict(every=2, keep=2),
)
TEXT = dict(
    path="{root}/text.txt", document="paragraph", split="tail", valid_fraction=0.1, workers=1
)


def rows_of(name: str) -> dict:
    return dict(path=f"{{root}}/{name}.train", split="file", valid_path=f"{{root}}/{name}.valid")


def task(kind: str, file: str, form: str, model: dict, objective: dict | None = None, **more):
    data = {k: v if k == "split" else f"{v}.{form}" for k, v in rows_of(file).items()}
    named = dict(task=dict(name=kind, **more.pop("task", {})), model=model, data=data)
    return named | ({"objective": objective} if objective else {}) | more


ANSWERS = dict(name="text_to_text", target_length=8)
LABELS = dict(name="classification", labels=("a", "b"))
RECIPES = {
    "gpt": dict(model=DECODER | dict(num_layers=2), objective=dict(name="causal_lm"), data=TEXT),
    "bert": dict(
        model=ENCODER | dict(num_layers=2),
        objective=dict(name="masked_lm", nsp=True),
        data=TEXT | dict(sentences=True),
    ),
    "t5": dict(model=BOTH, objective=dict(name="span_corruption"), data=TEXT),
    "lstm": dict(model=LSTM, objective=dict(name="causal_lm"), data=TEXT),
    "mixture": dict(
        model=LSTM,
        objective=dict(name="causal_lm"),
        data=TEXT | dict(path=("{root}/text.txt", "{root}/more.txt"), weights=(2.0, 1.0)),
    ),
    "ema": dict(model=LSTM, objective=dict(name="causal_lm"), data=TEXT, train=dict(ema_decay=0.9)),
    "micro-batches": dict(
        model=DECODER, objective=dict(name="causal_lm"), data=TEXT, train=dict(microbatches=2)
    ),
    "patience": dict(
        model=LSTM,
        objective=dict(name="causal_lm"),
        data=TEXT,
        eval=dict(every=2, patience=2),
        optimizer=dict(learning_rate=0.3),
    ),
    "classification": task("classification", "rows", "jsonl", ENCODER, LABELS),
    "buckets": task(
        "classification", "rows", "jsonl", LSTM, LABELS, train=dict(length=40, buckets=(24, 40))
    ),
    "seeds": task("classification", "rows", "jsonl", LSTM, LABELS, seeds=2, train=dict(steps=4)),
    "lora": task(
        "classification", "rows", "jsonl", {}, LABELS, init="{root}/init", lora=dict(rank=2)
    ),
    "regression": task("regression", "scores", "jsonl", LSTM),
    "similarity": task("similarity", "pairs", "jsonl", ENCODER),
    "tagging": task(
        "ner", "tags", "conll", ENCODER, dict(name="token_classification", labels=("O", "B-PER"))
    ),
    "question answering": task(
        "squad2", "squad", "json", ENCODER, dict(stride=8, question_length=8), train=dict(length=40)
    ),
    "text to text": task("text_to_text", "texts", "jsonl", BOTH, ANSWERS),
    "instruction": task("instruction", "asked", "jsonl", DECODER, ANSWERS, train=dict(length=64)),
    "chat": task("chat", "talks", "jsonl", DECODER, ANSWERS, train=dict(length=64)),
}
FAMILIES = [*RECIPES, "glue"]  # of which `init` is made first


def recipe(name: str, root: pathlib.Path) -> dict:
    """Return a family's config, its sections merged with those of BASE one level deep."""
    merged = copy.deepcopy(BASE)
    for section, value in RECIPES[name].items():
        old = merged.get(section)
        merged[section] = (
            old | value if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return json.loads(json.dumps(merged).replace("{root}", str(root)))


def write_data(root: pathlib.Path) -> None:
    """Write the files that the recipes read."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    for name in ("text", "more"):
        texts = [f"{words(6).capitalize()}. It {words(3)}.\n\n" for _ in range(120)]
        (root / f"{name}.txt").write_text("".join(texts))
    for split, count in (("train", 40), ("valid", 9)):
        kinds = {
            "rows": [{"text": words(3), "label": draw.choice("ab")} for _ in range(count)],
            "scores": [{"text": words(3), "score": draw.random()} for _ in range(count)],
            "pairs": [
                {"sentence1": words(3), "sentence2": words(3), "score": 5.0 * (i % 2)}
                for i in range(count)
            ],
            "texts": [{"input": (w := words(2)), "target": w.upper()[:8]} for _ in range(count)],
            "asked": [{"prompt": words(3), "response": words(1)} for _ in range(count)],
            "talks": [
                {"messages": [
                    {"role": "user", "content": words(2)},
                    {"role": "assistant", "content": words(1)},
                ]}
                for _ in range(count)
            ],
        }  # fmt: skip
        for name, rows in kinds.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / f"{name}.{split}.jsonl").write_text(lines)
        lines = []
        for _ in range(count):
            lines += [f"{w}\t{'B-PER' if w in ('sea', 'we') else 'O'}" for w in words(4).split()]
            lines.append("")
        (root / f"tags.{split}.conll").write_text("\n".join(lines))
        paragraphs = []
        for number in range(count):
            text = words(6)
            word = text.split()[2]
            answers = [{"text": word, "answer_start": text.index(word)}] * (number % 3 > 0)
            question = {"id": f"{split}-{number}", "question": "which?", "answers": answers}
            question["is_impossible"] = not answers
            paragraphs.append({"context": text, "qas": [question]})
        squad = {"version": "toy", "data": [{"paragraphs": paragraphs}]}
        (root / f"squad.{split}.json").write_text(json.dumps(squad))
    for name in ("CoLA", "SST-2"):
        (root / "glue" / name).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 24), ("dev", 9)):
        rows = [f"gj04\t{i % 2}\t\t{words(3)}\n" for i in range(count)]
        (root / "glue" / "CoLA" / f"{split}.tsv").write_text("".join(rows))
        rows = ["sentence\tlabel\n", *(f"{words(3)}\t{i % 2}\n" for i in range(count))]
        (root / "glue" / "SST-2" / f"{split}.tsv").write_text("".join(rows))


GLUE = [
    f"--config.{key}"
    for key in (
        *("train.epochs=0", "train.steps=4", "train.batch_size=8", "train.length=24"),
        *("train.buckets=()", "eval.every=2", "eval.batch_size=8", "checkpoint.every=2"),
    )
]


def command(name: str, root: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Return the command of a family's run; its config is written into `root`."""
    if name == "glue":
        options = [f"--init={root}/init", f"--data={root}/glue", f"--workdir={workdir}"]
        return ["glue", *options, *GLUE]
    path = root / f"{name.replace(' ', '_')}.json"
    path.write_text(json.dumps(recipe(name, root)))
    return ["train", f"--config={path}", f"--workdir={workdir}"]
