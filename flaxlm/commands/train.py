"""`train`: pre-train, fine-tune or resume."""

import dataclasses
from typing import ClassVar

from flaxlm.commands import STARTED
from flaxlm.commands.options import FreshOptions, ProcessOptions, RunOptions
from flaxlm.commands.seeds import train_seeds
from flaxlm.errors import ConfigError
from flaxlm.train import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions, FreshOptions, ProcessOptions):
    """Where a run is trained."""

    joins: ClassVar[bool] = True

    def default_recipe(self) -> dict:
        """Return the config of the run that is gone on with."""
        if not self.foreign and not (self.place / "config.json").exists():
            raise ConfigError(
                f"--config=FILE is required: {self.workdir} is not a run directory yet"
            )
        return super().default_recipe()


def run(options: Options, config) -> None:
    """Train a run, or the same run from several seeds."""
    trainer = train_seeds if config.seeds > 1 else train
    trainer(config, options.place, options.allow_missing, started=STARTED)
