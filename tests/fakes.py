"""In-memory stand-ins for a token cache and a tokenizer: what plans and objectives rely on."""

from typing import ClassVar

import numpy as np

from flaxlm.data.template import Template

BOS, EOS, FIRST = 2, 3, 5


class FakeTokenizer:
    """Letters of a text are ids from 5; a capital letter begins a word."""

    pad_id, unk_id, bos_id, eos_id, mask_id = 0, 1, BOS, EOS, 4
    cls_id, sep_id, start_id = BOS, EOS, 0
    template = Template.of((BOS,), (EOS,), (EOS,))
    hash = "fake"
    spaces_join = False
    beside: ClassVar[dict] = {}

    def __init__(self, vocab_size=120, sentinels=20):
        self.vocab_size = vocab_size
        self.sentinel_ids = np.arange(vocab_size - 1, vocab_size - 1 - sentinels, -1, np.int32)
        self.word_starts = np.arange(vocab_size) % 3 != 0

    def encode(self, text):
        return [FIRST + ord(letter) % (self.vocab_size - FIRST - 20) for letter in text]

    def encode_with_offsets(self, text):
        places = np.arange(len(text), dtype=np.int32)
        return self.encode(text), np.stack([places, places + 1], axis=1)

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


class FakeCache:
    """Documents of given lengths (text tokens); sentences of given lengths within each."""

    def __init__(self, documents, sentences=None, eos=True, vocab_size=100, seed=0):
        rng = np.random.default_rng(seed)
        self.documents = []
        for length in documents:
            text = rng.integers(FIRST, vocab_size, length)
            self.documents.append(np.concatenate([[BOS], text, [EOS] if eos else []]))
        self._set(eos, sentences)

    @classmethod
    def of(cls, texts, sentences=None, eos=True):
        """Return the cache of given texts (lists of ids)."""
        cache = cls([])
        cache.documents = [np.concatenate([[BOS], text, [EOS] if eos else []]) for text in texts]
        cache._set(eos, sentences)
        return cache

    def _set(self, eos, sentences):
        lengths = [len(document) for document in self.documents]
        self.tokens = np.concatenate([np.zeros(0, np.int64), *self.documents]).astype(np.int32)
        self.doc_offsets = np.cumsum([0, *lengths])
        self.num_tokens = len(self.tokens)
        self.append_eos = eos
        self.sentence_offsets = self.doc_sentences = None
        if sentences is not None:
            starts = [
                start + 1 + np.cumsum([0, *sizes[:-1]]) if sizes else []
                for start, sizes in zip(self.doc_offsets, sentences, strict=False)
            ]
            self.sentence_offsets = np.concatenate([*starts, [self.num_tokens]]).astype(np.int64)
            self.doc_sentences = np.cumsum([0, *map(len, sentences)])

    def take(self, index):
        index = np.asarray(index)
        assert index.min() >= 0, index.min()
        return self.tokens[index]


def text_of(document):
    """Return a stored document without BOS and EOS."""
    document = document[1:]
    return document[:-1] if len(document) and document[-1] == EOS else document


def document(cache, number):
    """Return the ids of one document, BOS and EOS included."""
    return cache.take(np.arange(*cache.doc_offsets[number : number + 2]))
