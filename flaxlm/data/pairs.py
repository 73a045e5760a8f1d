"""Sentence pairs for next-sentence prediction, from sentence boundaries alone.

Each document is cut into chunks of whole sentences that fill a row `[CLS] A [SEP] B [SEP]`. A
chunk is a row of every epoch: its sentences are split in two at a random place, and with
probability ½ what follows A is replaced by sentences of another document (Devlin et al., 2019).
"""

import numpy as np

from flaxlm.data.order import PerEpoch, Raw, RowRandom, permutation, ragged
from flaxlm.data.packing import content
from flaxlm.errors import ConfigError, DataError

IS_NEXT, RANDOM = 0, 1  # BERT's convention


class PairPlan:
    """A chunk of a document in each row, split in two, half of them with another document's text.

    A sentence of more than half a row is cut into pieces, and a chunk of one sentence into two
    halves, so that a chunk of two tokens or more can become either kind of pair, and what a pair
    looks like does not give its label away. The other document's sentences begin at one drawn
    uniformly from those of all other documents, and are as many as fit in place of the chunk's
    own: up to the row's end or, at the end of a document, up to the length of the chunk.
    """

    def __init__(self, cache, length: int, seed: int, shuffle: bool, *, bos_id: int, eos_id: int):
        if length < 5:
            fault = f"train.length={length} is too short for sentence pairs; 5 is the least"
            raise ConfigError(fault)
        if cache.sentence_offsets is None:
            raise ConfigError(
                "next-sentence prediction needs sentence boundaries: set data.sentences=True, "
                "or objective.nsp=False"
            )
        self.cache, self.length, self.seed, self.shuffle = cache, length, seed, shuffle
        self._bos, self._eos = bos_id, eos_id
        self._room = length - 3
        starts, lengths, document, chunks = self._chunks(*self._pieces(cache))
        self._starts, self._document = starts, np.append(document, -1)
        self._ends = np.cumsum(lengths)  # in a stream of text without BOS and EOS
        self._begins = self._ends - lengths
        self._chunks_at = chunks
        self._documents_at = np.searchsorted(document, np.arange(document[-1] + 2))
        if document[-1] == 0:
            raise DataError(
                "next-sentence prediction needs two documents or more with text; "
                "set objective.nsp=False or data.document"
            )
        self.num_rows = len(chunks) - 1
        tokens = int(self._ends[-1])
        padding = 1 - (tokens + 3 * self.num_rows) / (self.num_rows * length)
        self.report = {"rows": self.num_rows, "tokens": tokens, "padding": padding}
        self._epoch = PerEpoch(lambda epoch: permutation(seed, "rows", epoch, self.num_rows))

    def _pieces(self, cache):
        """Return (first token, tokens, document) of sentences, overlong ones in pieces.

        Documents are numbered without those that have no sentence.
        """
        starts = np.asarray(cache.sentence_offsets)[:-1]
        counts = np.diff(np.asarray(cache.doc_sentences))
        document, _ = ragged(counts)
        first, lengths = content(cache)
        ends = np.append(starts[1:], 0)
        last = np.cumsum(counts)[counts > 0] - 1
        ends[last] = (first + lengths)[counts > 0]
        lengths = ends - starts
        longest = self._room // 2
        owner, rank = ragged(-(-lengths // longest))
        if not len(owner):
            raise DataError("no document has a sentence; check data.path")
        starts = starts[owner] + rank * longest
        lengths = np.minimum(lengths[owner] - rank * longest, longest)
        return starts, lengths, np.unique(document[owner], return_inverse=True)[1]

    def _chunks(self, starts, lengths, document):
        """Return the pieces, single ones halved, and the first piece of each chunk, and the end."""
        ends = np.cumsum(lengths)
        begins = ends - lengths
        next_document = np.searchsorted(document, document, "right")
        # Greedy chunks: from piece i the next chunk begins at jump[i]. All chunk starts are what
        # jumps reach from the documents' starts, found in log₂(chunks a document) doublings.
        jump = np.minimum(np.searchsorted(ends, begins + self._room, "right"), next_document)
        jump = np.append(jump, len(starts))
        reached = np.zeros(len(starts) + 1, bool)
        reached[np.flatnonzero(np.diff(document, prepend=-1))] = True
        reached[-1] = True
        known = 0
        while known != (known := np.count_nonzero(reached)):
            reached[jump[reached]] = True
            jump = jump[jump]
        chunks = np.flatnonzero(reached)
        alone = chunks[:-1][np.diff(chunks) == 1]
        halved = np.zeros(len(starts), np.int64)
        halved[alone[lengths[alone] > 1]] = 1
        owner, rank = ragged(1 + halved)
        first = np.where(halved, lengths // 2, lengths)
        chunks = np.append(np.concatenate([[0], np.cumsum(1 + halved)])[chunks[:-1]], len(owner))
        starts = starts[owner] + rank * first[owner]
        lengths = np.where(rank, (lengths - first)[owner], first[owner])
        return starts, lengths, document[owner], chunks

    def _other(self, rng: RowRandom, piece: np.ndarray, room: np.ndarray):
        """Return (first token, tokens) of whole sentences of other documents, at most room[b]."""
        document = self._document[piece]
        first, stop = self._documents_at[document], self._documents_at[document + 1]
        own = (stop - first)[:, None]
        drawn = rng.integers("other", 1, len(self._starts) - own)[:, 0]
        drawn += np.where(drawn >= first, own[:, 0], 0)
        stop = self._documents_at[self._document[drawn] + 1]
        begin = self._begins[drawn]
        end = np.searchsorted(self._ends, begin + room, "right")
        end = np.clip(end, drawn + 1, stop) - 1  # last piece
        return self._starts[drawn], np.minimum(self._ends[end] - begin, room)

    def fetch(self, epoch: int, index: np.ndarray) -> Raw:
        """Return tokens, segment_ids, token_types [b, length]; labels, example_ids [b]."""
        epoch = epoch if self.shuffle else 0
        row = self._epoch(epoch)[index].astype(np.int64) if self.shuffle else index
        rng = RowRandom(self.seed, epoch * self.num_rows + row)
        piece, stop = self._chunks_at[row], self._chunks_at[row + 1]
        count = stop - piece
        split = piece + np.where(
            count > 1, 1 + rng.integers("split", 1, np.maximum(count - 1, 1)[:, None])[:, 0], 1
        )
        labels = np.where(rng.bits("random", 1)[:, 0] >> np.uint32(31), RANDOM, IS_NEXT)
        labels[count == 1] = RANDOM
        first_a, begin = self._starts[piece], self._begins[piece]
        tokens_a = self._ends[split - 1] - begin
        total = self._ends[stop - 1] - begin
        at_end = self._document[stop] != self._document[piece]
        room = np.where(at_end & (count > 1), total, self._room) - tokens_a
        other_b, other_tokens = self._other(rng, piece, room)
        follows = np.minimum(split, stop - 1)
        next_b = labels == IS_NEXT
        first_b = np.where(next_b, self._starts[follows], other_b)
        tokens_b = np.where(next_b, total - tokens_a, other_tokens)
        return self._rows(first_a, tokens_a, first_b, tokens_b) | {
            "labels": labels.astype(np.int32),
            "example_ids": row.astype(np.int32),
        }

    def _rows(self, first_a, tokens_a, first_b, tokens_b) -> Raw:
        """Lay out `[CLS] A [SEP] B [SEP]`; both texts are consecutive tokens of the cache."""
        column = np.arange(self.length, dtype=np.int32)
        middle = (tokens_a + 1).astype(np.int32)  # column of the first SEP
        final = (middle + tokens_b + 1).astype(np.int32)
        types = column > middle[:, None]
        # Around the texts the index is that of a neighbour, which is overwritten.
        index = np.where(types, (first_b - middle - 1)[:, None], (first_a - 1)[:, None])
        index += column
        np.minimum(index, self.cache.num_tokens - 1, out=index)
        tokens = self.cache.take(index.reshape(-1)).reshape(index.shape)
        real = column <= final[:, None]
        tokens *= real
        rows = np.arange(len(middle))
        tokens[:, 0] = self._bos
        tokens[rows, middle] = self._eos
        tokens[rows, final] = self._eos
        types &= real
        return {
            "tokens": tokens,
            "segment_ids": real.astype(np.int32),
            "token_types": types.astype(np.int32),
        }
