"""What a tokenizer from elsewhere may do to a text: in bounded time, and to a bounded length.

Its library runs regular expressions and replacements of a file in this process, where nothing can
stop them. So expressions that are not known are tried in another process, on runs of the characters
that they speak of; how much longer a text can become is computed.
"""

import base64
import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

from flaxlm.errors import DataError
from flaxlm.untrusted import parse_json

MOST_GROWTH = 100  # characters that one may become in a stage
MOST_STEPS = 64  # of a stage: each goes through the whole text
# Characters that a step may make of one. Unicode's forms make theirs once, however often they are
# asked for (U+FDFA becomes 18).
FORMS = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "BertNormalizer": 4}
GROWING = {"ByteLevel": 4, "Lowercase": 2}
MOST_PIECE = 4096  # characters of a piece
MOST_WORD = 1000  # characters of a word that WordPiece looks at, with work of its square
MOST_IDS = 1 << 24
MOST_SPECIAL = 1000  # tokens that a template puts around texts
RUN = 5000  # characters of a text that an expression is tried on
SECONDS = 0.05  # that it may take: work of its square takes 0.15 s, of its length 0.001 s
# Of GPT-2, Llama 3, Qwen 2, BLOOM, and of our own exports, of which the second is of the square of
# a run of spaces.
KNOWN = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    " ?[^(\\s|[.,!?…。，、।۔،])]+",
    " {2,}",
    r"\A +| +\z",
    r"\A +|(?<! ) +\z",
}
PROSE = "The sea was calm, and on day 12 we rowed to a far GREEN island, it’s 7 km. Море, 海 も。 "
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
STEPS = ("normalizers", "pretokenizers", "processors", "decoders")
# The other process: of each line, an expression and a text, it says the CPU time.
TRIAL = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from tokenizers import Regex, normalizers
for line in sys.stdin:
    pattern, text = json.loads(line)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 2,) * 2)
    replace = normalizers.Replace(Regex(pattern), "")
    begun = time.process_time()
    replace.normalize_str(text)
    print(time.process_time() - begun, flush=True)
"""


def vet(text: bytes, where: str) -> None:
    """Raise DataError where a tokenizer.json may take too long, or make too much of a text."""
    try:
        facts = parse_json(text, once=True)
        if not isinstance(facts, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise DataError(f"{where} is damaged or of an unknown kind: {error}") from None
    try:
        expressions = [pattern for part in PARTS for pattern in _part(facts.get(part), part, where)]
        _vocabulary(facts, where)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{where} is damaged or of an unknown kind: {what}") from None
    if unknown := tuple(dict.fromkeys(p for p in expressions if p not in KNOWN)):
        _try(unknown, where)


def _part(part: object, name: str, where: str) -> Iterator[str]:
    """Yield the expressions of a stage; DataError where it makes too much of a text."""
    growth, form, steps, waiting = 1.0, 1, 0, [part]
    while waiting:
        step = waiting.pop(0)
        if not isinstance(step, Mapping):
            continue
        waiting = [inner for key in STEPS for inner in step.get(key) or ()] + waiting
        kind, pattern, steps = step.get("type"), step.get("pattern"), steps + 1
        growth, form = growth * GROWING.get(kind, 1), max(form, FORMS.get(kind, 1))
        if isinstance(pattern, Mapping) and "Regex" in pattern:
            yield pattern["Regex"]
        made = len(step.get("content") or "") if kind == "Replace" else 0
        if made:
            one = pattern.get("String") if isinstance(pattern, Mapping) else pattern
            # An expression may match between characters too, which stay.
            growth *= max(1.0, made / max(1, len(one))) if one else 1 + made
        made = max(made, len(step.get("prepend") or ""))
        if kind == "Precompiled":
            check_map(base64.b64decode(step["precompiled_charsmap"] or ""), where)
        if kind == "TemplateProcessing":
            specials = [i for token in step["special_tokens"].values() for i in token["ids"]]
            if len(specials) + len(step["single"]) + len(step["pair"]) > MOST_SPECIAL:
                raise DataError(f"{where}: its template has more than {MOST_SPECIAL:,} tokens")
        if steps > MOST_STEPS:
            raise DataError(f"{where}: its {name} has more than {MOST_STEPS} steps")
        if growth * form > MOST_GROWTH or made > MOST_GROWTH:
            raise DataError(
                f"{where}: its {name} ({kind}) may make a text more than {MOST_GROWTH} times as "
                "long, which no known tokenizer does"
            )


def check_map(charsmap: bytes, where: str) -> None:
    """Raise DataError where SentencePiece's map of characters makes too many of one."""
    trie = int.from_bytes(charsmap[:4], "little")
    if max(map(len, charsmap[4 + trie :].split(b"\0"))) > MOST_GROWTH:
        raise DataError(
            f"{where}: its map of characters makes more than {MOST_GROWTH} bytes of one"
        )


def _vocabulary(facts: dict, where: str) -> None:
    model = facts.get("model") or {}
    vocabulary, added = model.get("vocab") or (), facts.get("added_tokens") or ()
    listed = not isinstance(vocabulary, dict)
    pieces = [piece for piece, _ in vocabulary] if listed else vocabulary
    ids = [len(vocabulary)] if listed else vocabulary.values()
    tokens = ((token["content"], token["id"]) for token in added)
    spelt, numbers = zip(*tokens, strict=True) if added else ((), ())
    longest = max(map(len, itertools.chain(pieces, spelt)), default=0)
    if longest > MOST_PIECE:
        raise DataError(f"{where}: a piece has more than {MOST_PIECE:,} characters")
    if max(itertools.chain(ids, numbers), default=0) >= MOST_IDS:
        raise DataError(f"{where}: an id is not below {MOST_IDS:,}")
    word = model.get("max_input_chars_per_word") or 0
    if word > MOST_WORD:
        raise DataError(
            f"{where}: max_input_chars_per_word={word}; at most {MOST_WORD:,} are looked at"
        )


def samples(pattern: str) -> list[str]:
    """Return texts on which an expression that is slow on any is likely to be so."""
    literal = "".join(dict.fromkeys(re.sub(r"\\[pPuxkg]\{[^}]*\}|\\[A-Za-z]", "", pattern)))[:24]
    units = [PROSE, *dict.fromkeys(f"{literal}aA1 \n\t.中")]
    units += ["".join(pair) for pair in itertools.permutations(units[1:7], 2)]
    # What it may ask for stands at the end, where nothing before it leads to it.
    return [unit * (RUN // len(unit)) + "\0" + literal for unit in units]


@functools.lru_cache(maxsize=16)
def _try(patterns: tuple[str, ...], where: str) -> None:
    """Raise DataError where an expression takes too long on one of its samples."""
    tried = [(pattern, text) for pattern in patterns for text in samples(pattern)]
    lines = "".join(json.dumps(pair) + "\n" for pair in tried)
    options = {"input": lines, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    done = subprocess.run([sys.executable, "-c", TRIAL], text=True, check=False, **options)
    times = list(map(float, done.stdout.split()))
    slow = next((n for n, seconds in enumerate(times) if seconds > SECONDS), len(times))
    if slow < len(tried):
        pattern, text = tried[slow]
        raise DataError(
            f"{where}: the expression {pattern[:80]!r} takes too long, or fails, on a run of "
            f"{text[:2]!r}; save the tokenizer without it"
        )
