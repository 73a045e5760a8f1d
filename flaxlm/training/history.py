"""What the steps of a run were made with, and what a resume may promise of their bits.

A checkpoint holds [[first step, facts], …]: from the state of a step on the run went with these
facts: the machine's fingerprint, the code, and the settings that may change when it goes on. So a
change is known of for good, and not only to the start that makes it.
"""

import contextlib
import hashlib
import json
from typing import Any

import numpy as np

from flaxlm.training import manifest
from flaxlm.training.config import RunConfig
from flaxlm.training.manifest import Manifest
from flaxlm.training.newest import CONFIG
from flaxlm.training.optimizer import OptimizerConfig, make_schedule
from flaxlm.training.sections import DURATIONS, TrainConfig
from flaxlm.untrusted import parse_json

History = list  # of [first step, facts]
MACHINE, CODE, TOTAL, JUDGED = "machine", "code", "total_steps", "judged"
COMPUTING = ("flax", "optax", "numpy", "sentencepiece", "tokenizers")  # jax is in the fingerprint
UNKNOWN = {"flaxlm": None}  # of checkpoints of before 2026-11-27: code that was another


def facts(config: RunConfig, mesh, total: int) -> dict[str, Any]:
    """Return what the steps from now on are made with, as JSON gives it back."""
    sharding = {"mesh": dict(mesh.shape), "rules": config.sharding.rules}
    judged = {}
    if config.eval.split:
        judged = {"eval.every": config.eval.every, "eval.batch_size": config.eval.batch_size}
    parts = {
        MACHINE: manifest.fingerprint() | sharding,
        CODE: program(),
        TOTAL: total,
        JUDGED: judged,
    }
    return parse_json(json.dumps(parts))


def program() -> dict[str, str]:
    """Return the versions of the libraries that decide bits, and a digest of flaxlm's own files."""
    own = hashlib.sha256(json.dumps(manifest.code()).encode()).hexdigest()[:12]
    return {"flaxlm": own} | {n: v for n, v in manifest.versions().items() if n in COMPUTING}


def of(record: Manifest, path, now: dict[str, Any], rows: int) -> History:
    """Return the history of a checkpoint in the directory `path`.

    One of before 2026-11-26 has what its manifest and config.json say; `rows` are an epoch's.
    """
    if not record.step or "history" in record.extra:
        return record.extra.get("history", [])
    then = dict(now)
    # The rules are those of the config, which does not say what was computed with them.
    then[MACHINE] = record.fingerprint | {"mesh": record.mesh, "rules": now[MACHINE]["rules"]}
    then[CODE] = now[CODE] | {n: v for n, v in record.versions.items() if n in COMPUTING} | UNKNOWN
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        own = parse_json((path / CONFIG).read_bytes(), whole=False)
        names = (*DURATIONS, "batch_size", "length")
        train = {name: own["train"][name] for name in names}
        then[TOTAL] = TrainConfig(**train).total_steps(rows)
        then[JUDGED] = {key: own["eval"][key.partition(".")[2]] for key in now[JUDGED]}
    return [[0, then]]


def extended(history: History, step: int, now: dict[str, Any]) -> History:
    """Return a history with what is done from the state of `step` on."""
    history = [part for part in history if part[0] < step]
    return history if history and history[-1][1] == now else [*history, [step, now]]


def promise(history: History, step: int, now: dict[str, Any], config: RunConfig) -> str:
    """Return one line: what a resume at `step` may promise, against a run with `now` throughout."""
    made = [part for part in history if part[0] < step]
    ends = [*(part[0] for part in made[1:]), *[step] * bool(made)]
    reasons, other_code, chosen = [], [], ""
    every = config.eval.every
    for (first, then), end in zip(made, ends, strict=True):
        steps = f"steps {first + 1} to {end}"
        until = f" (up to step {end})" * (end != step)
        if changed := _changes(then[MACHINE], now[MACHINE]):
            reasons.append(changed + until)
        if changed := _changes(then.get(CODE, now[CODE] | UNKNOWN), now[CODE]):
            other_code.append(changed + until)
        other = _other_rate(config.optimizer, then[TOTAL], now[TOTAL], first, end)
        if other is not None:
            reasons.append(
                f"{steps} were made with the schedule of a run of {then[TOTAL]} steps, which "
                f"differs from that of {now[TOTAL]} from step {other} on"
            )
        if then[JUDGED] != now[JUDGED]:
            was = ", ".join(f"{key}={value}" for key, value in then[JUDGED].items())
            chosen = f"up to step {end} the best step was looked for with {was}"
        # Where a shorter run ended it was judged, as the longer one is not.
        if then[JUDGED] and end == then[TOTAL] != now[TOTAL] and (not every or end % every):
            chosen = f"at step {end} the run of {end} steps was judged, at its end"
    if chosen and config.eval.patience:  # which it decides the end of
        reasons.append(chosen)
        chosen = ""
    if reasons or other_code:
        chosen = f"; {chosen}" * bool(chosen)
        if not reasons:
            only = "same data order, and the same bits only if other code computes the same"
            return f"{only}: {'; '.join(other_code)}{chosen}"
        reasons += other_code
        return f"same data order, not the same bits: {'; '.join(reasons)}{chosen}"
    deterministic = "--xla_gpu_deterministic_ops=true" in str(now[MACHINE].get("xla_flags", ""))
    if "cpu" not in str(now[MACHINE].get("device", "")).lower() and not deterministic:
        return (
            "same fingerprint; the same bits only with "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true (GPU) or fixed compiler choices"
            + f"; {chosen}"
            * bool(chosen)
        )
    if chosen:
        return f"same fingerprint, the same bits of the model, but another best step: {chosen}"
    return "same fingerprint, the same bits: as if never interrupted"


def _changes(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return what differs between two sets of facts, one `name old → new` after the other."""
    differ = (n for n in sorted({*a, *b}) if a.get(n) != b.get(n))
    return ", ".join(f"{n} {a.get(n)!r} → {b.get(n)!r}" for n in differ)


def _other_rate(config: OptimizerConfig, one: int, other: int, first: int, end: int) -> int | None:
    """Return the first step of first + 1 … end with another learning rate, of two durations."""
    if one == other:
        return None
    steps = np.arange(first, end)
    rates = (make_schedule(config, total)(steps) for total in (one, other))
    a, b = (np.broadcast_to(np.asarray(rate), steps.shape) for rate in rates)
    differ = np.flatnonzero(a != b)
    return first + int(differ[0]) + 1 if len(differ) else None
