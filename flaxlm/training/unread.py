"""Keys that nothing reads, given the others: setting one is refused, with the reason."""

from flaxlm.data.sources import STDLIB, DataConfig, sources
from flaxlm.errors import FlaxlmError
from flaxlm.interop.pretrained import SCHEME
from flaxlm.models import MODELS
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
    first_token = (model.pooling or MODELS[family].bidirectional * "first") == "first"
    first, last = config.train.profile_range() if config.train.profile_steps else (0, 1)
    label = isinstance(config.objective, SequenceObjective)
    formats = set() if rows and not task.reads_documents else _formats(data)
    said = ", ".join(sorted(formats))
    byte, char, loaded = tokenizer.kind == "byte", tokenizer.kind == "char", bool(tokenizer.path)
    rules = (
        # Whether, section, keys, why.
        (not config.init, "", "init_weights", "there is no init"),
        (config.init.startswith(SCHEME), "tokenizer", f"kind path sentinels {TRAINED}",
         "init has a tokenizer"),
        (loaded, "tokenizer", f"kind {TRAINED}", "tokenizer.path names one that is there"),
        (byte, "tokenizer", TRAINED, "tokenizer.kind='byte' has the bytes"),
        (char, "tokenizer", "vocab_size character_coverage", "each character has an id"),
        (rows, "data", "weights append_eos sentences cache_dir verify workers",
         "a task reads examples"),
        (rows and not task.reads_documents, "data",
         "nfc strip_control dedup min_chars field document", "the task reads rows of a table"),
        ({*data.paths} == {STDLIB}, "data", "format" + " document" * (data.document != "file"),
         "data.path='stdlib' is Python files, a document each"),
        (formats and "text" not in formats, "data", "document", f"data.path is {said}"),
        (formats == {"text"}, "data", "field", "data.path is text, and has no columns"),
        (formats == {"datasets"}, "data", "include exclude", "data.path is one data set"),
        (len(data.paths) == 1, "data", "weights", "data.path is one path"),
        (not data.threads, "data", "prefetch", "data.threads=0 makes each batch when it is due"),
        (not getattr(config.objective, "nsp", False), "data", "sentences",
         f"objective.name={config.objective_name!r} predicts no next sentence"),
        (data.split in ("file", "whole"), "data", "valid_fraction test_fraction",
         f"data.split={data.split!r}"),
        (family != "encoder_decoder", "model", "num_decoder_layers separate_positions",
         f"model.name={family!r} has one side"),
        (positions != "learned", "model", "max_length position_offset",
         f"model.positions={positions!r} has no table"),
        (positions != "relative", "model", "relative_buckets relative_max_distance",
         f"model.positions={positions!r}"),
        (positions != "rotary", "model", ROPE, f"model.positions={positions!r}"),
        (not positions and model.tied, "model", "init", "model.tied=True leaves no output table"),
        ((model.pooler or first_token * "dense") != "dense", "model", "pooler_activation",
         "there is no dense pooler"),
        (label and family != "encoder_decoder", "objective", "target_length",
         f"model.name={family!r} writes no label"),
        (getattr(config.objective, "num_beams", 2) == 1, "objective", "length_penalty",
         "objective.num_beams=1 searches for nothing"),
        (not rows, "", "baseline", f"task.name={config.task_name!r} gives no answers to compare"),
        (not getattr(task, "shots", 1), "task", "seed", "task.shots=0"),
        (not getattr(task, "unanswerable", True), "task", "null_threshold",
         "task.unanswerable=False"),
        (getattr(task, "choice_columns", ()), "task", "choices_column",
         "task.choice_columns names columns of one choice each"),
        (getattr(task, "context_columns", ()), "task", "contexts_column",
         "task.context_columns names columns of one context each"),
        (True, "objective", "model", "model.name decides it"),
        (not config.eval.split, "eval", "every batch_size metric mode patience", "eval.split=''"),
        (not config.eval.split, "checkpoint", "keep_best", "eval.split=''"),
        (config.eval.patience and not config.eval.every, "eval", "patience",
         "the run is evaluated once, at its end; set eval.every"),
        (not 0 <= first < last <= (config.train.steps or last), "train", "profile_steps",
         "first:last lies within no step of the run"),
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


def _formats(data: DataConfig) -> set[str]:
    """Return the formats of the files that a corpus is read from; none where they are not there."""
    splits = data.split_names() if data.split == "file" else ["train"]
    try:
        return {source.format for split in splits for source in sources(data, split)}
    except FlaxlmError:  # what is not there is named where it is read
        return set()
