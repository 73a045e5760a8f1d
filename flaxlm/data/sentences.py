"""Splitting a document into sentences whose concatenation is the document again."""

import re

# A full stop, question or exclamation mark with its closing quotes, before white space; an
# ideographic stop needs no space; a blank line always ends a sentence. Newlines stay with the
# sentence that they end, spaces go with the word that they precede.
_END = re.compile(
    r"""(?:[.!?…]+["'”’»)\]]*(?=[ \t\n\r])|[。！？]+[”’」』）]*)[\r\n]*"""
    r"""|[\r\n][ \t]*[\r\n]\s*(?<=\n)"""
)
# After these a full stop does not end a sentence; a single capital is an initial.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(“\"'])(?:[A-Z]|Mrs?|Ms|Dr|St|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Messrs|Mme|Mlle|No|vs"
    r"|e\.g|i\.e|cf|etc|viz|al|pp?|vol|ch|fig)\.$"
)


def sentences(text: str) -> list[str]:
    """Return the sentences of `text` in order, none empty; joined they are `text`.

    Rules for languages with a full stop, good enough for pairs of sentences (BERT's own data was
    split by simple rules as well): a stop before a lower-case letter or after an abbreviation
    does not end a sentence.
    """
    parts, start = [], 0
    for match in _END.finditer(text):
        end = match.end()
        if end == len(text):
            break
        if not match[0].endswith("\n") and match[0][0] in ".!?…":
            following = text[end : end + 8].lstrip()
            if following[:1].islower():
                continue
            if _ABBREVIATION.search(text, max(start, end - 12), end):
                continue
        if text[start:end].strip():
            parts.append(text[start:end])
            start = end
    rest = text[start:]
    if parts and not rest.strip():
        parts[-1] += rest
    elif rest:
        parts.append(rest)
    return parts
