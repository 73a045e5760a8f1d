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

import numpy as np

from flaxlm import files
from flaxlm.errors import DataError, MissingInput, Unsafe, choose

FORMAT = 1
MANIFEST = "manifest.json"
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
    """

    def __init__(self, directory: pathlib.Path, split: str, manifest: dict):
        part = manifest["splits"][split]
        self.directory, self.split, self.manifest = directory, split, manifest
        self.hash: str = manifest["hash"]
        self.tokenizer_hash: str = manifest["tokenizer"]
        self.append_eos: bool = manifest["append_eos"]
        self.counts: dict[str, int] = part["counts"]
        self.num_tokens = self.counts["tokens"]
        self._shard_tokens: int = manifest["shard_tokens"]
        dtype = np.dtype(manifest["dtype"])
        self._shards = [
            np.asarray(np.memmap(directory / name, dtype, "r")) for name in part["shards"]
        ]
        self.doc_offsets = self._offsets("documents")
        self.sentence_offsets = self._offsets("sentences") if manifest["sentences"] else None
        self.doc_sentences = self._offsets("document_sentences") if manifest["sentences"] else None

    def _offsets(self, name: str) -> np.ndarray:
        return np.asarray(np.load(self.directory / f"{self.split}.{name}.npy", mmap_mode="r"))

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
            shard = self._shards[first]
            return shard[index - first * self._shard_tokens if first else index].astype(np.int32)
        out = np.empty(index.shape, np.int32)
        shard_of = index // self._shard_tokens
        for number in range(first, last + 1):
            chosen = shard_of == number
            out[chosen] = self._shards[number][index[chosen] - number * self._shard_tokens]
        return out

    @property
    def largest(self) -> int:
        """The largest id, -1 where there are no tokens; every one is read for it."""
        return max((int(shard.max()) for shard in self._shards if shard.size), default=-1)


def read_manifest(directory: str | os.PathLike) -> dict:
    """Return a cache's manifest, itself verified; MissingInput where there is no cache."""
    path = pathlib.Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError:
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
    """Open one split, memory-mapped, in milliseconds.

    Every file's size is checked, and the digests of small ones; `verify` checks all digests.
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
        good = size == facts["bytes"]
        if good and (verify or size <= SMALL):
            good = files.sha256(path) == facts["sha256"]
        if not good:
            fault = "is missing" if size is None else "does not match its manifest"
            raise DataError(f"{path} {fault}; delete {directory} and tokenize again")
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


class SplitWriter:
    """Appends parts to the files of one split, hashing on the way; `files` and `counts` result."""

    def __init__(self, directory: pathlib.Path, split: str, sentences: bool, shard_tokens: int):
        self._directory, self._split, self._shard_tokens = directory, split, shard_tokens
        self._sentences = sentences
        self._digest, self._room = hashlib.sha256(), 0  # of the last shard
        self._lengths: dict[str, list[np.ndarray]] = {"documents": [], "document_sentences": []}
        self._starts: list[np.ndarray] = []
        self._tokens = 0
        self.counts: dict[str, int] = {}
        self.shards: list[str] = []
        self.files: dict[str, dict] = {}

    def add(self, part: dict[str, np.ndarray], counts: dict[str, int]) -> None:
        """Append one part's arrays, as `encode.Encoder` makes them."""
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0) + value
        self._lengths["documents"].append(part["documents"])
        if self._sentences:
            self._lengths["document_sentences"].append(part["document_sentences"])
            self._starts.append(self._tokens + _sentence_starts(part))
        self._write_tokens(part["tokens"])
        self._tokens += len(part["tokens"])

    def _write_tokens(self, tokens: np.ndarray) -> None:
        tokens = tokens.astype(tokens.dtype.newbyteorder("<"), copy=False)
        while len(tokens):
            if not self._room:
                self.shards.append(f"{self._split}.tokens-{len(self.shards):05d}.bin")
                self._digest, self._room = hashlib.sha256(), self._shard_tokens
            name, part = self.shards[-1], tokens[: self._room]
            with open(self._directory / name, "ab") as file:
                file.write(part.tobytes())
                size = file.tell()
            self._digest.update(part.tobytes())
            self.files[name] = {"bytes": size, "sha256": self._digest.hexdigest()}
            self._room, tokens = self._room - len(part), tokens[len(part) :]

    def close(self) -> None:
        """Write the offsets; `files.fsync_tree` is the caller's."""
        self._save("documents", _borders(self._lengths["documents"]))
        if self._sentences:
            self._save("document_sentences", _borders(self._lengths["document_sentences"]))
            ends = np.array([self._tokens], np.int64)
            self._save("sentences", np.concatenate([*self._starts, ends]))

    def _save(self, name: str, array: np.ndarray) -> None:
        path = self._directory / f"{self._split}.{name}.npy"
        np.save(path, array)
        self.files[path.name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


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
