"""lm-evaluation-harness on run directories and Hugging Face directories (extra `lm_eval`).

    python -m flaxlm.lm_eval_adapter --model flaxlm --model_args workdir=runs/gpt --tasks hellaswag

takes every flag of `lm_eval`. `model_args` are the arguments of `FlaxLM`: `workdir=hf:DIR` reads a
Hugging Face model.
"""

import sys
from collections.abc import Sequence

from flaxlm.errors import ConfigError, FlaxlmError

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise ImportError(
        "flaxlm.lm_eval_adapter needs lm-evaluation-harness: pip install 'flaxlm[lm_eval]'"
    ) from error

from flaxlm import sharding
from flaxlm.inference import generate, likelihood
from flaxlm.inference.requests import Continuation, Reader, request
from flaxlm.progress import note
from flaxlm.training.opened import load

NEW_TOKENS = 256  # where a task does not say
PROMPTS = 16  # that are continued together
WINDOW = 1024  # tokens that a model without a table of positions reads at once


class FlaxLM(LM):
    """A run's model as the harness asks it.

    A text begins with BOS, as in training here, unless `add_bos_token` says otherwise; the
    harness's own models leave it out where their tokenizer does (GPT-2). Likelihoods are computed
    in blocks of their own size (`likelihood.BLOCK_TOKENS`), so they do not depend on `batch_size`.
    """

    def __init__(
        self,
        workdir: str,  # run directory, hf:DIR or hf:OWNER/NAME
        checkpoint: str = "",  # of a run: latest, best, a step, or nothing, see `reading.find`
        max_length: int = 0,  # most tokens to read; 0 for as many as the model has positions
        max_gen_toks: int = NEW_TOKENS,  # most tokens of a generated text where no task says
        add_bos_token: bool = True,
        fsdp: int = 1,  # sizes of these axes of the mesh over all devices
        tensor: int = 1,
        batch_size: int | str = PROMPTS,  # prompts that are continued together
        max_batch_size=None,  # given by the harness, like `device`, and not needed
        device=None,
    ):
        super().__init__()
        mesh = sharding.ShardingConfig(fsdp=int(fsdp), tensor=int(tensor))
        self.model = load(str(workdir), checkpoint=str(checkpoint), sharding=mesh)
        self.tokenizer = self.model.tokenizer
        self.limit = likelihood.reading_limit(self.model, int(max_length))
        self.new_tokens, self.add_bos_token = int(max_gen_toks), bool(add_bos_token)
        with self.model.reading_text():
            width = sharding.batch_width()
        rows = PROMPTS if batch_size == "auto" else int(batch_size)
        self.batch_size = -(-rows // width) * width

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return (nats, whether greedy decoding writes it) of each (context, continuation)."""
        reader = Reader(self.tokenizer, self.model.family, self.limit)
        asked = [self._bare(request(reader, *r.args)) for r in requests]
        scores = likelihood.score(self.model, asked, self.limit or 0, "loglikelihood")
        return list(zip(scores.log_likelihood.tolist(), scores.greedy.tolist(), strict=True))

    def _bare(self, asked):
        """Return what is asked, without BOS where there is a context and BOS is not wanted."""
        begins = isinstance(asked, Continuation) and asked.context[:1] == (self.tokenizer.bos_id,)
        if self.add_bos_token or not begins or len(asked.context) < 2:
            return asked
        return asked._replace(context=asked.context[1:])

    def loglikelihood_rolling(self, requests) -> list[float]:
        """Return the nats of each text, read in windows that do not overlap."""
        texts = [asked.args[0] for asked in requests]
        return (-likelihood.rolling(self.model, texts, self.limit or WINDOW)).tolist()

    def generate_until(self, requests) -> list[str]:
        """Return the text that follows each context, up to a stop string or EOS."""
        texts: list = [""] * len(requests)
        by_options: dict[generate.GenerateConfig, list[int]] = {}
        for number, asked in enumerate(requests):
            by_options.setdefault(self._options(asked.args[1]), []).append(number)
        for options, members in by_options.items():
            prompts = [self._prompt(requests[m].args[0], options.max_new_tokens) for m in members]
            generations = generate.generate(self.model, prompts, options)
            for member, generation in zip(members, generations, strict=True):
                texts[member] = generation.text
        return texts

    def _options(self, words: dict) -> generate.GenerateConfig:
        """Return how to generate, from the harness's words for it."""
        words = dict(words)
        stop = words.pop("until", ())
        samples = words.pop("do_sample", words.get("temperature", 0) > 0)
        drawing = {
            "temperature": float(words.pop("temperature", 1.0)),
            "top_k": int(words.pop("top_k", 0)),
            "top_p": float(words.pop("top_p", 1.0)),
        }
        options = {
            "stop": (stop,) if isinstance(stop, str) else tuple(filter(None, stop or ())),
            "max_new_tokens": int(words.pop("max_gen_toks", self.new_tokens)),
            "batch_size": self.batch_size,
            **(drawing if samples else {"temperature": 0.0}),
        }
        if words:
            raise ConfigError(
                f"generation_kwargs {', '.join(words)}: flaxlm has until, do_sample, max_gen_toks, "
                "temperature, top_k and top_p"
            )
        return generate.GenerateConfig(**options).complete()

    def _prompt(self, context: str, new: int) -> Sequence[int]:
        """Return the ids of a context, its beginning cut where the model has no room for it."""
        ids = self.tokenizer.encode(context)
        if self.model.traits.encodes:
            return [*ids, self.tokenizer.eos_id][-(self.limit or len(ids) + 1) :]
        if self.add_bos_token or not ids:
            ids = [self.tokenizer.bos_id, *ids]
        return ids if self.limit is None else ids[-max(1, self.limit - new + 1) :]


def main() -> int:
    """Run the harness's own command line, with `flaxlm` among its models; return the exit code."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model("flaxlm")(FlaxLM)
    try:
        cli_evaluate()
    except FlaxlmError as error:
        note(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
