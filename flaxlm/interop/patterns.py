"""What tables of `names/` share: heads, and the modules of an attention by their names."""

from flaxlm.interop.spec import JOINING, LINEAR, Head, Layout, Row

QKV = ("attention/query", "attention/key", "attention/value")
NO_BIAS = dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias"), False)


def one_module(head: str, name: str) -> Head:
    """Return a class with one head, which is one module."""
    return Head((head,), (Row(f"heads/{head}", name),))


def masked_lm(dense: str, norm: str, kernel: str, bias: str) -> Head:
    """Return a class with BERT's head for masked tokens."""
    names = {"transform": dense, "transform_norm": norm, "mlm/kernel": kernel, "mlm/bias": bias}
    return Head(("mlm",), tuple(Row(f"heads/{path}", name) for path, name in names.items()))


TOKENS = one_module("token_classification", "classifier")
ANSWERS = one_module("question_answering", "qa_outputs")


def attention(module: str, names: str, ours: str = "attention") -> dict[str, str]:
    """Return {projection of ours: its name}; `names` are those of query, key, value and output."""
    paths = (f"{ours}/{part}" for part in ("query", "key", "value", "out"))
    return {path: f"{module}.{name}" for path, name in zip(paths, names.split(), strict=True)}


def fused(name: str, order: str, paths: tuple[str, ...]) -> dict[str, tuple[str, Layout]]:
    """Return {module of ours: (name, Layout)} of modules that are one in the file."""
    return {path: (name, Layout(order, n, len(paths))) for n, path in enumerate(paths)}


def layers(ours: str, theirs: str, names: dict, start: int = 0) -> list[Row]:
    """Return rows of stacked layers: `{module of ours: its name, or (name, Layout)}`."""
    rows = []
    for path, name in names.items():
        layout = JOINING if path.endswith("/out") else LINEAR
        if isinstance(name, tuple):
            name, layout = name
        rows.append(Row(f"{ours}/{path}", f"{theirs}.{name}", layout, start))
    return rows
