"""The token cache on disk: memory-mapped shards and offsets under a manifest.

manifest.json               written last; the cache is complete if it verifies
<split>.tokens-00000.bin    ids, uint16 or uint32 little-endian, SHARD_TOKENS per file
<split>.documents.npy       int64 [D+1], where each document starts; the last entry is the end
<split>.sentences.npy       int64 [S+1], where each sentence starts (with data.sentences)
<split>.document_sentences.npy  int64 [D+1], each document's first sentence
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from flaxlm import files
from flaxlm.data import verified
from flaxlm.data.encode import COUNTS
from flaxlm.data.verified import damaged
from flaxlm.errors import DataError, MissingInput, Unsafe, choose, raise_scarce
from flaxlm.untrusted import file_bytes, parse_json

FORMAT = 1
MANIFEST = "manifest.json"
OWN = 1 << 30  # bytes of it; that of a corpus of a million files has 300 MB
SHARD_TOKENS = 1 << 28  # 512 MiB of uint16
SMALL = 1 << 20  # bytes; files up to this size are verified by digest each time they are opened


class TokenCache:
    """One split's tokens as a single virtual stream, documents in order, each from its BOS on.

    Attributes:
      doc_offsets: int64 [D+1], token offset of each document's BOS, then `num_tokens`.
      sentence_offsets: int64 [S+1], token offset of each sentence; BOS and EOS belong to none, so
        a document's last sentence ends before its EOS. None without `data.sentences`.
      doc_sentences: int64 [D+1], each document's first sentence; None without `data.sentences`.
      counts: those of `encode.COUNTS`.
      append_eos: whether documents end with EOS.
      hash: of the contents; the same wherever and whenever the cache was built.
      content: likewise, of this split alone.
    """

    def __init__(self, directory: pathlib.Path, split: str, manifest: dict):
        part = manifest["splits"][split]
        self.directory, self.split, self.manifest = directory, split, manifest
        self.hash: str = manifest["hash"]
        own = {n: f["sha256"] for n, f in manifest["files"].items() if n.startswith(f"{split}.")}
        facts = json.dumps([manifest["dtype"], own], sort_keys=True)
        self.content = hashlib.sha256(facts.encode()).hexdigest()
        self.append_eos: bool = manifest["append_eos"]
        self.counts: dict[str, int] = part["counts"]
        self.num_tokens = self.counts["tokens"]
        self._shard_tokens: int = manifest["shard_tokens"]
        dtype = np.dtype(manifest["dtype"])
        self._vocab_size: int = manifest.get("vocab_size", 1 << 32)
        self._names: list[str] = part["shards"]
        self._shards = [np.asarray(np.memmap(directory / n, dtype, "r")) for n in self._names]
        if sum(map(len, self._shards)) != self.num_tokens:
            raise damaged(
                directory / self._names[-1], f"does not end at {self.num_tokens:,} tokens"
            )
        self.doc_offsets = self._offsets("documents", self.num_tokens)
        self.sentence_offsets = self.doc_sentences = None
        if manifest["sentences"]:
            self.sentence_offsets = self._offsets("sentences", self.num_tokens)
            self.doc_sentences = self._offsets("document_sentences", len(self.sentence_offsets) - 1)

    def _offsets(self, name: str, end: int) -> np.ndarray:
        """Return an array of where things start, which ends at `end`."""
        path = self.directory / f"{self.split}.{name}.npy"
        try:
            offsets = np.asarray(np.load(path, mmap_mode="r"))
        except OSError:  # of the system, as too many open files: the cache is not to blame
            raise
        except (ValueError, EOFError):
            raise damaged(path, "is no array of offsets") from None
        rising = offsets.ndim == 1 and len(offsets) and offsets.dtype == np.int64
        if not rising or offsets[0] < 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
            raise damaged(path, f"is not offsets that rise up to {end:,}")
        return offsets

    def take(self, index: np.ndarray) -> np.ndarray:
        """Return the ids at `index` (int64, any shape, in [0, num_tokens)) as int32."""
        index = np.asarray(index)
        if index.size == 0:
            return np.zeros(index.shape, np.int32)
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= self.num_tokens:
            raise IndexError(f"token {low} .. {high} is outside 0 .. {self.num_tokens - 1}")
        first, last = low // self._shard_tokens, high // self._shard_tokens
        if first == last:
            return self._ids(first, index - first * self._shard_tokens if first else index)
        out = np.empty(index.shape, np.int32)
        shard_of = index // self._shard_tokens
        for number in range(first, last + 1):
            chosen = shard_of == number
            out[chosen] = self._ids(number, index[chosen] - number * self._shard_tokens)
        return out

    def _ids(self, number: int, index: np.ndarray) -> np.ndarray:
        """Return the ids at `index` of a shard as int32; DataError for one that nobody has."""
        ids = self._shards[number][index]
        if ids.size and int(ids.max()) >= self._vocab_size:
            place = int(index.ravel()[ids.argmax()])
            token = number * self._shard_tokens + place
            document = int(np.searchsorted(self.doc_offsets, token, "right")) - 1
            raise damaged(
                self.directory / self._names[number],
                f"has the id {ids.max()} at token {place:,} (row {document:,} of the "
                f"{self.split} split), and the tokenizer has {self._vocab_size:,}",
            )
        return ids.astype(np.int32)

    @property
    def largest(self) -> int:
        """The largest id, -1 where there are no tokens; every one is read for it."""
        return max((int(shard.max()) for shard in self._shards if shard.size), default=-1)


def read_manifest(directory: str | os.PathLike) -> dict:
    """Return a cache's manifest, itself verified; MissingInput where there is no cache."""
    path = pathlib.Path(directory) / MANIFEST
    try:
        manifest = parse_json(file_bytes(path), OWN, whole=False)
    except OSError as error:
        raise_scarce(error)
        fault = f"there is no token cache at {directory}; make one with python -m flaxlm tokenize"
        raise MissingInput(fault) from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("digest") != _manifest_digest(manifest):
        raise DataError(f"{path} is damaged; delete {directory} and tokenize again")
    if manifest["format"] != FORMAT:
        raise DataError(
            f"{directory} is a token cache of format {manifest['format']}, not {FORMAT}; delete it "
            "and tokenize again"
        )
    return manifest


def open_cache(
    directory: str | os.PathLike, split: str, tokenizer_hash: str = "", verify: bool = False
) -> TokenCache:
    """Open one split, memory-mapped.

    Every file's size is checked, and the digests of small ones; `verify` checks all digests, as
    `cache.prepare` does once on each machine.
    A tokenizer other than the one that made the cache is refused (Unsafe).
    """
    directory = pathlib.Path(directory)
    manifest = read_manifest(directory)
    choose("split", split, manifest["splits"])
    if tokenizer_hash and tokenizer_hash != manifest["tokenizer"]:
        raise Unsafe(
            f"the token cache {directory} was made by the tokenizer {manifest['tokenizer'][:12]}, "
            f"but this run has {tokenizer_hash[:12]}; tokenize again in another workdir"
        )
    for name, facts in manifest["files"].items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise damaged(path, "is missing")
        if size != facts["bytes"] or (size <= SMALL and files.sha256(path) != facts["sha256"]):
            raise damaged(path, "does not match its manifest")
    if verify:
        verified.verify(directory, manifest["files"], whole=True)
    return TokenCache(directory, split, manifest)


def write_manifest(directory: pathlib.Path, manifest: dict) -> None:
    """Complete a cache with its manifest: the content hash, then the manifest's own digest."""
    content = ("format", "tokenizer", "append_eos", "sentences", "dtype", "splits", "files")
    facts = json.dumps({key: manifest[key] for key in content}, sort_keys=True)
    manifest = manifest | {"hash": hashlib.sha256(facts.encode()).hexdigest()}
    manifest["digest"] = _manifest_digest(manifest)
    files.replace(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _manifest_digest(manifest: dict | None) -> str:
    facts = {key: value for key, value in (manifest or {}).items() if key != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_split(
    directory: pathlib.Path, split: str, parts: Iterable[dict[str, np.ndarray]], shard_tokens: int
) -> tuple[dict, dict]:
    """Write the files of one split, hashing on the way; `files.fsync_tree` is the caller's.

    `parts` are as `encode.Encoder` makes them. Returns the split's entry in the manifest, and
    {file: its size and digest}.
    """
    facts: dict[str, dict] = {}
    shards: list[str] = []
    lengths, sentence_counts, starts, counts = [], [], [], []
    digest, room, total = hashlib.sha256(), 0, 0  # of the last shard, in it, of all
    for part in parts:
        counts.append(part["counts"])
        lengths.append(part["documents"])
        if "sentences" in part:
            sentence_counts.append(part["document_sentences"])
            starts.append(total + _sentence_starts(part))
        tokens = part["tokens"].astype(part["tokens"].dtype.newbyteorder("<"), copy=False)
        total += len(tokens)
        while len(tokens):
            if not room:
                shards.append(f"{split}.tokens-{len(shards):05d}.bin")
                digest, room = hashlib.sha256(), shard_tokens
            data, tokens = tokens[:room].tobytes(), tokens[room:]
            with open(directory / shards[-1], "ab") as file:
                file.write(data)
                size = file.tell()
            digest.update(data)
            facts[shards[-1]] = {"bytes": size, "sha256": digest.hexdigest()}
            room -= len(data) // tokens.itemsize
    arrays = {"documents": _borders(lengths)}
    if starts:
        arrays["document_sentences"] = _borders(sentence_counts)
        arrays["sentences"] = np.concatenate([*starts, np.array([total], np.int64)])
    for name, array in arrays.items():
        path = directory / f"{split}.{name}.npy"
        np.save(path, array)
        facts[path.name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    counted = dict(zip(COUNTS, np.sum(counts, axis=0).tolist(), strict=True))
    return {"counts": counted, "shards": shards}, facts


def _borders(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])


def _sentence_starts(part: dict[str, np.ndarray]) -> np.ndarray:
    """Token offset in the part of each sentence: after the document's BOS and the ones before."""
    sizes, per_document, lengths = part["sentences"], part["document_sentences"], part["documents"]
    before = np.cumsum(sizes) - sizes  # of the part, without BOS and EOS
    first = np.cumsum(per_document) - per_document
    document_start = np.cumsum(lengths) - lengths
    shift = document_start + 1 - before[first]
    return before + np.repeat(shift, per_document)
