"""A trained model as one object: `training` opens it, `inference` asks it, `interop` stores it."""

import contextlib
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from flaxlm import sharding
from flaxlm.data.vocabulary import Tokenizer
from flaxlm.errors import MissingInput, choose
from flaxlm.models import MODELS, Model
from flaxlm.sharding import ShardingConfig


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with its parameters, its tokenizer, and what else its files say of it.

    Attributes:
      generation: what its files say of generating texts, see `interop.generation`.
      trained_here: its parameters were trained by this library, last at least, and so on texts
        that begin with BOS and end in the tokenizer's EOS.
      special_ids: special tokens as `config.json` named them, where the tokenizer does not decide.
      problem: what a classifier's outputs are, in the words of `problem_type`; empty for labels of
        which each text has one.
    """

    family: str  # its key in `MODELS`
    module: nn.Module  # `module.apply({'params': params}, batch)`; it holds `config` and heads
    params: dict  # nested, of arrays
    tokenizer: Tokenizer | None = None  # that it was trained with; None: its files have none
    labels: tuple[str, ...] = ()  # names of a classifier's classes
    generation: dict = dataclasses.field(default_factory=dict)
    trained_here: bool = False
    context: int = 0  # tokens that it was trained with at once; 0 where that is not known
    architecture: str = ""  # class of `transformers` that it came from; empty for any that fits
    special_ids: dict = dataclasses.field(default_factory=dict)
    problem: str = ""
    mesh: Mesh | None = None  # over which the parameters are split; None where they are not
    sharding: ShardingConfig | None = None  # how they are

    def __post_init__(self):
        choose("family", self.family, MODELS)

    @property
    def traits(self) -> Model:
        """What the family reads and writes."""
        return MODELS[self.family]

    @property
    def config(self) -> Any:
        """The config of the module."""
        return self.module.config

    @property
    def heads(self) -> dict[str, int]:
        """{head: output size}, 0 for the vocabulary."""
        return dict(self.module.head_sizes)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text: those that the model's files name, or the tokenizer's EOS.

        Both where it was trained here, whatever else ends the texts of the model it began as.
        """
        named = self.generation.get("eos_token_id")
        ids = set(named) if isinstance(named, list) else {named} - {None}
        if self.trained_here or not ids:
            ids.add(self.tokenizer.eos_id)
        return tuple(sorted(ids))

    def on_mesh(self):
        """Return the context in which the module is called: that of the mesh, if there is one."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return sharding.use(self.mesh, self.sharding)

    @contextlib.contextmanager
    def reading_text(self):
        """Enter `on_mesh` to be given texts; MissingInput where there is no tokenizer for them."""
        if self.tokenizer is None:
            raise MissingInput(
                "the model has no tokenizer, so it cannot be given texts; put the files of its "
                "tokenizer beside its weights"
            )
        with self.on_mesh():
            yield

    def __call__(self, batch: dict) -> dict:
        """Return {head: output}, and `hidden`, of a batch; see `models.families`.

        On a mesh its rows are split over the devices, and so must divide over them.
        """
        with self.on_mesh():
            return _apply(self.module, self.params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, batch):
    return module.apply({"params": params}, batch)
