"""Keys that nothing reads, as the others stand: who sets one is told so instead of ignored."""

from flaxlm.interop.pretrained import SCHEME
from flaxlm.objectives.sequence import SequenceObjective
from flaxlm.training.config import RunConfig

ROPE = "rotary_dim rope_theta rope_local_theta rope_scaling rope_factor rope_low_frequency"
ROPE += " rope_high_frequency rope_original_length"
TRAINED = "vocab_size byte_fallback normalization character_coverage train_chars seed"


def unread(config: RunConfig) -> dict[str, str]:
    """Return {key: why nothing reads it} of a config."""
    data, model, tokenizer, task = config.data, config.model, config.tokenizer, config.task
    optimizer, schedule = config.optimizer, config.optimizer.schedule
    family, positions = config.model_name, getattr(model, "positions", "")
    rows = bool(task.objective) or task.ranks
    label = isinstance(config.objective, SequenceObjective)
    byte, char, loaded = tokenizer.kind == "byte", tokenizer.kind == "char", bool(tokenizer.path)
    rules = (
        # Whether, section, keys, why.
        (not config.init, "", "init_weights", "there is no init"),
        (config.init.startswith(SCHEME), "tokenizer", f"kind path sentinels {TRAINED}",
         "init has a tokenizer"),
        (loaded, "tokenizer", f"kind {TRAINED}", "tokenizer.path names one that is there"),
        (byte, "tokenizer", TRAINED, "tokenizer.kind='byte' has the bytes"),
        (char, "tokenizer", "vocab_size character_coverage", "each character has an id"),
        (rows, "data", "weights append_eos sentences cache_dir workers", "a task reads examples"),
        (rows and not task.reads_documents, "data", "nfc strip_control dedup min_chars field",
         "the task reads rows of a table"),
        (data.split in ("file", "whole"), "data", "valid_fraction test_fraction",
         f"data.split={data.split!r}"),
        (family != "encoder_decoder", "model", "num_decoder_layers separate_positions",
         f"model.name={family!r} has one side"),
        (positions != "learned", "model", "max_length position_offset",
         f"model.positions={positions!r} has no table"),
        (positions != "relative", "model", "relative_buckets relative_max_distance",
         f"model.positions={positions!r}"),
        (positions != "rotary", "model", ROPE, f"model.positions={positions!r}"),
        (not positions and model.tied, "model", "init", "model.tied=True leaves it nothing"),
        (label and family != "encoder_decoder", "objective", "target_length",
         f"model.name={family!r} writes no label"),
        (getattr(config.objective, "num_beams", 2) == 1, "objective", "length_penalty",
         "objective.num_beams=1 searches among no texts"),
        (True, "objective", "model", "model.name decides it"),
        (not config.eval.split, "eval", "every batch_size metric mode patience", "eval.split=''"),
        (not config.eval.split, "checkpoint", "keep_best", "eval.split=''"),
        (not config.lora.rank, "lora", "alpha targets train", "lora.rank=0"),
        (optimizer.name != "sgd", "optimizer", "momentum", f"optimizer.name={optimizer.name!r}"),
        (optimizer.name not in ("adamw", "lion"), "optimizer", "b1 b2",
         f"optimizer.name={optimizer.name!r}"),
        (optimizer.name != "adamw", "optimizer", "epsilon", f"optimizer.name={optimizer.name!r}"),
        (schedule != "wsd", "optimizer", "cooldown", f"optimizer.schedule={schedule!r}"),
        (schedule in ("constant", "inverse_sqrt"), "optimizer", "final_learning_rate decay_steps",
         f"optimizer.schedule={schedule!r} has no end"),
    )  # fmt: skip
    return {
        f"{section}.{key}".lstrip("."): why
        for holds, section, keys, why in rules
        if holds
        for key in keys.split()
    }
