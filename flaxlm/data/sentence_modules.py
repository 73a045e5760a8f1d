"""What a sentence encoder's files say of making a vector of a text, as sentence-transformers'.

`modules.json` names the steps behind the backbone, `1_Pooling/config.json` how states are pooled,
`sentence_bert_config.json` how long a text may be, and `config_sentence_transformers.json` what is
put before texts.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Mapping

from flaxlm.errors import DataError
from flaxlm.untrusted import parse_json

LIST, PROMPTS = "modules.json", "config_sentence_transformers.json"
TEXTS = (LIST, PROMPTS, "sentence_*_config.json", "[0-9]_*/config.json")  # patterns of names
# Their modes that are computed here, by the users' word.
MODES = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}


@dataclasses.dataclass(frozen=True)
class SentenceModules:
    """How a model's own files make a vector of a text; empty where there are none.

    Attributes:
      pooling: cls, mean or last; empty where nothing is said, or what is said is not computed.
      normalize: whether vectors are divided by their length.
      max_tokens: longer texts are cut, special tokens counted; 0 for what the model can read.
      lowercase: texts are lower-cased first.
      prompts: {name: what is put before a text}; `prompt` is the one of every text.
      where: {attribute: the file that says it}.
      unsupported: what a vector of theirs needs and is not computed here, in a sentence each.
    """

    pooling: str = ""
    normalize: bool = False
    max_tokens: int = 0
    lowercase: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt: str = ""
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unsupported: tuple[str, ...] = ()


def read_modules(texts: Mapping[str, str]) -> SentenceModules:
    """Return what files say, given as {name: text}; DataError where one is damaged."""
    if LIST not in texts:
        return SentenceModules()
    facts: dict = {}
    where: dict[str, str] = {}
    unsupported: list[str] = []
    prompted = _prompts(texts)
    for module in _parsed(texts, LIST, list):
        kind = str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind == "Pooling":
            path = where["pooling"] = f"{module.get('path')}/config.json"
            settings = _parsed(texts, path, dict)
            facts["pooling"], modes = _pooling(settings)
            if not facts["pooling"]:
                unsupported.append(f"{path} pools by {modes}, not by {', '.join(MODES)}")
            if prompted["prompts"] and not settings.get("include_prompt", True):
                unsupported.append(f"{path} leaves the prompt out of the pool")
        elif kind == "Normalize":
            facts["normalize"], where["normalize"] = True, LIST
        elif kind != "Transformer":
            unsupported.append(f"{LIST} has the module {module!r:.100}")
    for name in fnmatch.filter(sorted(texts), "sentence_*_config.json"):
        settings = _parsed(texts, name, dict)
        length = settings.get("max_seq_length") or 0
        if type(length) is not int or length < 0:
            raise DataError(f"{name}: max_seq_length={length!r} is not a number of tokens")
        facts |= {"max_tokens": length, "lowercase": bool(settings.get("do_lower_case"))}
        where |= {"max_tokens": name} if length else {}
    return SentenceModules(**facts, **prompted, where=where, unsupported=tuple(unsupported))


def _prompts(texts: Mapping[str, str]) -> dict:
    settings = _parsed(texts, PROMPTS, dict) if PROMPTS in texts else {}
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or (default is not None and default not in prompts):
        raise DataError(f"{PROMPTS}: default_prompt_name={default!r} is not among its prompts")
    return {"prompts": prompts, "prompt": prompts.get(default, "")}


def _pooling(settings: dict) -> tuple[str, str]:
    """Return (the users' word for what is pooled by, '' for what is not computed; its modes)."""
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes += [k[13:] for k, on in settings.items() if k.startswith("pooling_mode_") and on is True]
    words = {MODES.get(mode, mode if mode in MODES.values() else "") for mode in modes} or {"mean"}
    return words.pop() if len(words) == 1 else "", " and ".join(modes)


def modules_for(pooling: str, width: int, max_tokens: int) -> dict[str, str]:
    """Return {name: text} of files that say: pooled so, of length 1, cut at `max_tokens`."""
    steps = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(steps)
    ]
    modes = {f"pooling_mode_{mode}": word == pooling for mode, word in MODES.items()}
    contents = {
        LIST: listed,
        "1_Pooling/config.json": {"word_embedding_dimension": width} | modes,
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
    }
    return {name: json.dumps(value, indent=2) + "\n" for name, value in contents.items()}


def _parsed(texts: Mapping[str, str], name: str, kind: type):
    try:
        value = parse_json(texts[name], once=True)
    except KeyError:
        raise DataError(f"{LIST} names {name}, which is not there") from None
    except ValueError as error:
        raise DataError(f"{name} is damaged: {error}") from None
    if not isinstance(value, kind):
        raise DataError(f"{name} is damaged: it holds no {'list' if kind is list else 'object'}")
    return value
