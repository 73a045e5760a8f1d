"""`tokenize`: train the tokenizer if there is none, and write the token cache."""

import dataclasses
from typing import ClassVar

from flaxlm.commands.options import RunOptions
from flaxlm.errors import ConfigError
from flaxlm.training.inputs import Inputs
from flaxlm.training.metrics import report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Where tokenizer and caches are made."""

    platform: ClassVar[str] = "cpu"


def run(options: Options, config) -> None:
    """Train the tokenizer if there is none, write the token caches, and print their counts."""
    if config.task.objective:
        raise ConfigError(
            f"task {config.task_name} reads its examples when it trains; tokenize takes a recipe "
            "with task text"
        )
    with Inputs.open(config, options.place) as inputs:
        result = {"tokenizer/hash": inputs.tokenizer.hash[:16]}
        result["tokenizer/vocab_size"] = inputs.tokenizer.vocab_size
        for split in config.data.cached_splits():
            sources = inputs.sources(split)
            for name in ("documents", "tokens", "bytes", "words"):
                result[f"{split}/{name}"] = sum(source.counts[name] for source in sources)
    report(options.place, result, "tokenize")
