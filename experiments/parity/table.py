"""Write the table of parity from what the tests recorded: table.py XML MARKDOWN."""

import pathlib
import sys
import xml.etree.ElementTree as ET

COLUMNS = ("logits", "loss", "gradients", "step")
BEGIN, END = "<!-- parity: written by `make parity` -->\n", "<!-- end of parity -->"
NAMES = {
    "bert": "BERT", "roberta": "RoBERTa", "xlm_roberta": "XLM-R", "distilbert": "DistilBERT",
    "electra": "ELECTRA", "albert": "ALBERT", "modernbert": "ModernBERT", "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia", "llama": "Llama 2, 3", "mistral": "Mistral",
    "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma 2", "gemma3": "Gemma 3", "t5": "T5",
    "t5_v1_1": "T5 v1.1, Flan-T5", "mt5": "mT5", "byt5": "ByT5", "bart": "BART",
}  # fmt: skip


def main(results: str, page: str) -> None:
    rows: dict[str, dict] = {}
    for case in ET.parse(results).getroot().iter("testcase"):
        if any(case.find(bad) is not None for bad in ("failure", "error")):
            raise SystemExit(f"{case.get('name')} failed: no table is written")
        values = {p.get("name"): p.get("value") for p in case.iter("property")}
        if "class" not in values:
            continue
        family = case.get("name").partition("[")[2].partition("-")[0]
        row = rows.setdefault(family, {"classes": set()})
        row["classes"].add(values["class"])
        for name in COLUMNS:
            if name in values:
                row[name] = max(row.get(name, 0.0), float(values[name]))
        if "round_trip" in values:
            row["trips"] = row.get("trips", 0) + 1
    lines = [
        "| architecture | classes | logits | loss | gradients | after AdamW | round trips |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, row in rows.items():
        figures = " | ".join(f"{row[name]:.1e}" for name in COLUMNS)
        lines.append(
            f"| {NAMES[family]} | {len(row['classes'])} | {figures} | {row['trips']} bit-equal |"
        )
    path = pathlib.Path(page)
    before, _, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} lacks the marks around the table")
    path.write_text(before + BEGIN + "\n".join(lines) + "\n" + end + after)
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
