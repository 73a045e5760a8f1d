"""One training step of ours against the same-shape `transformers` + torch model, alternating.

6 layers, 384 wide, 6 heads, length 256, batch 8, vocabulary 8,192, float32, AdamW, dropout 0.1, on
this machine's CPU. Ours is the jitted step of `make_train_step`, gradient clipping, metrics and the
check for non-finite values included; torch runs eager with the fused AdamW.

    python experiments/2026-11-22_speed/bench.py --rounds=15 --csv=results.csv
"""

import argparse
import csv
import os
import statistics
import time

import jax
import numpy as np
import torch
import transformers

from flaxlm import from_dict, make_mesh, make_train_step
from flaxlm.sharding import to_global

V, D, N, H, L, B = 8192, 384, 6, 6, 256, 8
RATE = 0.1
SIZES = dict(vocab_size=V, width=D, num_layers=N, num_heads=H)
DROP = dict(embed_dropout=RATE, attention_dropout=RATE, residual_dropout=RATE)
FAMILIES = {
    "decoder": (
        dict(preset="gpt2", max_length=L, **SIZES, **DROP),
        dict(name="causal_lm"),
    ),
    "encoder": (
        dict(preset="bert_base", max_length=L, **SIZES, **DROP),
        dict(name="masked_lm", nsp=False),
    ),
    "encoder_decoder": (
        dict(preset="t5_small", mlp_width=4 * D, output_scale=D**-0.5, **SIZES, **DROP,
             mlp_dropout=RATE, output_dropout=RATE),
        dict(name="span_corruption", target_length=L // 2),
    ),
}  # fmt: skip


def full_batch(spec: dict, rng) -> dict:
    """Return a batch without padding: every token real, every target scored."""
    batch = {}
    for name, (shape, dtype) in spec.items():
        if name == "target_positions":
            rows = [np.sort(rng.choice(L, shape[1], replace=False)) for _ in range(shape[0])]
            value = np.stack(rows)
        elif name.endswith("positions"):
            value = np.broadcast_to(np.arange(shape[1]), shape)
        elif name.endswith("tokens") or name == "targets":
            value = rng.integers(5, V, shape)
        elif name == "token_types":
            value = np.zeros(shape)
        else:
            value = np.ones(shape)
        batch[name] = np.ascontiguousarray(value).astype(dtype)
    return batch


def ours(family: str):
    """Return (a function that takes one step, the batch)."""
    model, objective = FAMILIES[family]
    config = from_dict(
        dict(
            tokenizer=dict(vocab_size=V),
            model=model,
            objective=objective,
            train=dict(steps=1000, batch_size=B, length=L),
            optimizer=dict(learning_rate=1e-4, schedule="constant"),
        )
    )
    program = make_train_step(config, make_mesh(config.sharding), 1000)
    batch = full_batch(config.objective.batch_spec(B, L), np.random.default_rng(0))
    state = {}
    with program.mesh():
        state["state"] = program.init(0)
        device_batch = to_global(batch, 0, B, program.batch_sharding)

    def step():
        with program.mesh():
            state["state"], metrics = program.step(state["state"], device_batch)
            return float(metrics["loss"])

    return step, batch


def theirs(family: str, batch: dict):
    """Return a function that takes one torch step on the same tokens."""
    torch.manual_seed(0)
    ids = {k: torch.tensor(np.asarray(v)).long() for k, v in batch.items() if v.dtype != np.float32}
    if family == "decoder":
        config = transformers.GPT2Config(
            vocab_size=V, n_positions=L, n_embd=D, n_layer=N, n_head=H,
            embd_pdrop=RATE, attn_pdrop=RATE, resid_pdrop=RATE,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        inputs = dict(input_ids=ids["tokens"], labels=ids["tokens"])
    elif family == "encoder":
        config = transformers.BertConfig(
            vocab_size=V, hidden_size=D, num_hidden_layers=N, num_attention_heads=H,
            intermediate_size=4 * D, max_position_embeddings=L,
            hidden_dropout_prob=RATE, attention_probs_dropout_prob=RATE,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
        labels = torch.full((B, L), -100).scatter_(1, ids["target_positions"], ids["targets"])
        inputs = dict(input_ids=ids["tokens"], labels=labels)
    else:
        config = transformers.T5Config(
            vocab_size=V, d_model=D, d_kv=D // H, d_ff=4 * D, num_layers=N, num_heads=H,
            dropout_rate=RATE, decoder_start_token_id=0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
        inputs = dict(input_ids=ids["encoder_tokens"], labels=ids["targets"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step():
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def timed(step) -> float:
    """Return the seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    """Alternate the two, print and write medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--family", choices=[*FAMILIES, "all"], default="all")
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for family in FAMILIES if given.family == "all" else [given.family]:
        step, batch = ours(family)
        other = theirs(family, batch)
        for _ in range(2):
            step(), other()
        pairs = [(timed(step), timed(other)) for _ in range(given.rounds)]
        mine, torchs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append(
            {
                "family": family,
                "ours_s": round(mine, 4),
                "torch_s": round(torchs, 4),
                "torch_over_ours": round(ratio, 3),
                "rounds": given.rounds,
                "jax": jax.__version__,
                "torch": torch.__version__,
            }
        )
        print(rows[-1], flush=True)
    if given.csv:
        with open(given.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
