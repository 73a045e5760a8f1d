"""How tokens are chosen and when a text ends: as asked, as the model's files say, or as usual."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flaxlm.errors import ConfigError, choose
from flaxlm.models import MODELS
from flaxlm.trained import TrainedModel

# What holds where neither the caller nor the model's files say anything.
USUAL = {
    "max_new_tokens": 128,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "num_samples": 1,
    "num_beams": 1,
    "length_penalty": 0.6,
}
DRAWING = ("temperature", "top_k", "top_p")
# Ways to choose tokens: the options that each does not read.
FILLING, SEARCHING, GREEDY, SAMPLING = "fill", "search", "greedy", "sample"
UNREAD = {
    FILLING: "max_new_tokens temperature top_p seed stop num_samples num_beams length_penalty bos",
    SEARCHING: "temperature top_k top_p seed stop",
    GREEDY: "top_k top_p seed num_samples length_penalty",
    SAMPLING: "length_penalty",
}
# Fields of generation_config.json that are options here, by their names there;
OPTIONS = dict.fromkeys(("max_new_tokens", *DRAWING, "num_beams"), "") | {
    "num_return_sequences": "num_samples"
}
# those that do not bear on the text, or that are read elsewhere;
IDLE = frozenset(
    """
    transformers_version use_cache cache_implementation cache_config return_legacy_cache
    return_dict_in_generate output_scores output_logits output_attentions output_hidden_states
    prefill_chunk_size disable_compile low_memory do_sample
    bos_token_id eos_token_id pad_token_id decoder_start_token_id
    """.split()
)
# and the values, beside 0 and nothing, at which a field has no effect.
NEUTRAL = {"max_length": 20} | dict.fromkeys(
    """
    temperature top_p typical_p num_return_sequences repetition_penalty num_beams num_beam_groups
    encoder_repetition_penalty length_penalty guidance_scale
    """.split(),
    1,
)


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How to choose tokens and when to stop; None leaves it to the model's files, see `resolve`.

    Attributes:
      max_new_tokens: most tokens generated for a prompt; usually 128.
      temperature: divides the logits; 0 takes the most likely token; usually 1.
      top_k: keep the k most likely tokens; 0 keeps all, as usual. An encoder lists so many
        alternatives (5 at 0).
      top_p: keep the smallest set of tokens that holds this much probability; usually 1, all.
      seed: with (prompt index, sample index) it decides every sample.
      stop: strings that end a text; the text is cut before the first of them.
      num_samples: texts for each prompt, usually 1; of a beam search the best ones.
      batch_size: prompts decoded together; it has to divide over a mesh, where there is one.
      num_beams: above 1, search for the likeliest texts with so many beams; nothing is drawn;
        usually 1.
      length_penalty: α of a beam search: texts of n tokens are compared by log p / ((5 + n) / 6)^α
        (Wu et al., 2016, equation 14); 0 prefers short ones; usually 0.6.
      bos: whether BOS begins a decoder's prompt: always, never, or auto: as in training here, and
        as the files of another project's tokenizer say. An empty prompt is BOS.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    num_samples: int | None = None
    batch_size: int = 16
    num_beams: int | None = None
    length_penalty: float | None = None
    bos: str = "auto"

    def __post_init__(self):
        for name in ("max_new_tokens", "num_samples", "batch_size", "num_beams"):
            self._check(name, lambda value: value >= 1, "at least 1")
        self._check("temperature", lambda t: 0 <= t < float("inf"), "0 (greedy) or more")
        self._check("top_k", lambda k: k >= 0, "0 (off) or more")
        self._check("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1 (off)")
        self._check("length_penalty", lambda a: 0 <= a < float("inf"), "0 (off) or more")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"stop={self.stop!r} must be a tuple of strings, none empty")
        choose("bos", self.bos, ("auto", "always", "never"))
        if (self.num_beams or 1) > 1:
            self.refuse_unread(SEARCHING, f"num_beams={self.num_beams}")
            if (self.num_samples or 1) > self.num_beams:
                raise ConfigError(
                    f"num_samples={self.num_samples} must be at most num_beams={self.num_beams}: a "
                    "beam search ends with as many texts as it has beams"
                )
        elif self.temperature == 0:
            self.refuse_unread(GREEDY, "temperature=0")

    def _check(self, name: str, fits: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        if value is not None and not fits(value):
            raise ConfigError(f"{name}={value} must be {rule}")

    def check_family(self, family: str) -> None:
        """Raise ConfigError for an option that models of a family do not read."""
        if MODELS[family].bidirectional:
            self.refuse_unread(FILLING, f"model.name={family!r}")
        if self.bos != "auto" and MODELS[family].encodes:
            raise ConfigError(f"bos={self.bos!r} is for models that continue prompts")

    def refuse_unread(self, way: str, why: str) -> None:
        """Raise ConfigError for an option that is not read in one of the ways of `UNREAD`.

        What says that it is off is no such option; `why` says where the way was chosen.
        """
        does, instead = {
            FILLING: ("fills each [MASK] with its most likely token", ""),
            SEARCHING: ("searches for the likeliest whole texts", ", or set num_beams=1"),
            GREEDY: ("takes the most likely token each time", ", or set temperature=1"),
            SAMPLING: ("draws one token after the other", ", or set num_beams above 1"),
        }[way]
        usual = {field.name: field.default for field in dataclasses.fields(self)} | USUAL
        off = {"temperature": (None, 0.0, 1.0)}  # nothing is drawn
        for name in UNREAD[way].split():
            value = getattr(self, name)
            if value not in off.get(name, (None, usual[name])):
                raise ConfigError(
                    f"{name}={value!r} has no meaning with {why}, which {does}; "
                    f"leave it out{instead}"
                )

    def complete(self, **values) -> "GenerateConfig":
        """Return the options with `values`, or else the usual ones, where they say nothing."""
        values = (USUAL | values).items()
        left = {name: value for name, value in values if getattr(self, name) in (None, ())}
        return dataclasses.replace(self, **left)


def forced_ids(model: TrainedModel) -> list[int]:
    """Return the ids that each text of another project's encoder-decoder begins with unasked."""
    forced = model.generation.get("forced_bos_token_id")
    foreign = model.traits.encodes and not model.trained_here
    if not foreign or forced is None:
        return []
    return forced if isinstance(forced, list) else [forced]


def resolve(options: GenerateConfig, model: TrainedModel) -> tuple[GenerateConfig, str]:
    """Return the options, complete, and a line that says what the model's files have added.

    A field that is not known here, or that contradicts what was asked for, is named in the line
    as not applied. Fields that were asked for, and fields without effect, are not in it.
    """
    file = model.generation.get("_file", "generation_config.json")
    fields = {name: v for name, v in model.generation.items() if _has_effect(name, v)}
    added, forced = {}, forced_ids(model)
    for name in [name for name in OPTIONS if name in fields]:
        ours = OPTIONS[name] or name
        added[ours] = _number(file, name, fields.pop(name), type(USUAL[ours]))
    if model.traits.encodes and "max_length" in fields:  # of all that the decoder reads or writes
        length = _number(file, "max_length", fields.pop("max_length"), int)
        added.setdefault("max_new_tokens", length - 1 - len(forced))
    added = {name: value for name, value in added.items() if getattr(options, name) is None}
    do_sample = model.generation.get("do_sample")
    draws = options.temperature != 0 and any(getattr(options, n) is not None for n in DRAWING)
    greedy = options.temperature == 0 or (do_sample is False and not draws)
    samples = options.num_samples or added.get("num_samples", 1)
    beams = added.get("num_beams", 1)
    contradicted = set()
    if beams > 1 and (do_sample or draws or options.stop or samples > beams):
        contradicted, beams = {"num_beams"}, 1
    if model.traits.bidirectional:
        way, why = FILLING, f"model.name={model.family!r}"
    elif (options.num_beams or beams) > 1:
        way, why = SEARCHING, f"num_beams={beams} of {file}"
    elif greedy:
        way, why = GREEDY, f"do_sample=False of {file}"
    else:
        way, why = SAMPLING, "num_beams=1"
    options.refuse_unread(way, why)
    contradicted |= {*UNREAD[way].split()}
    if greedy or do_sample is False:
        contradicted |= {*DRAWING}
    left = {name: added.pop(name) for name in [*added] if name in contradicted} | fields
    if left.get("top_k") == 50 and not do_sample:
        del left["top_k"]  # the default there
    if way == GREEDY and options.temperature is None:
        added["temperature"] = 0.0
    if "stop_strings" in left and way in (GREEDY, SAMPLING):
        stop = left.pop("stop_strings")
        added |= {} if options.stop else {"stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    try:
        complete = options.complete(**added)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    if forced:
        added["forced_bos_token_id"] = left.pop("forced_bos_token_id")
    applied, ignored = (
        ", ".join(f"{name} {str(value)[:40]}" for name, value in values.items())
        for values in (added, left)
    )
    said = f"{applied}; not applied: {ignored}".removeprefix("; ") if left else applied
    return complete, f"{file}: {said}" if said else ""


def _has_effect(name: str, value) -> bool:
    if name in IDLE or name.startswith("_") or value == NEUTRAL.get(name):
        return False
    return value is not None if name.endswith("_token_id") else bool(value)


def _number(file: str, name: str, value, kind: type):
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise ConfigError(f"{file}: {name}={value!r} is not of type {kind.__name__}")
    return kind(value)
