"""Encoding parts of a corpus, here or in worker processes.

A worker is a fresh interpreter that is spoken to over pipes, not a fork: the parent may hold
jax's threads, and forking those can hang. It imports neither jax nor the parent's main module, and
ends when its input closes, so that `kill -9` of the parent leaves nothing behind.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import pickle
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np

from flaxlm import files
from flaxlm.data.long import PART
from flaxlm.data.tokenizer import Tokenizer, load_tokenizer
from flaxlm.data.unknown import unknown_id
from flaxlm.errors import FlaxlmError, Preempted, StorageError, cause_of

# Counted for each split; `tokens` include BOS and EOS, `bytes` are UTF-8, `words` are what white
# space separates, `unrecoverable` is U+2581 under SentencePiece.
COUNTS = ("documents", "tokens", "bytes", "characters", "words", "sentences")
COUNTS += ("unknown", "unrecoverable")
# A full stop, question or exclamation mark with its closing quotes, before white space; an
# ideographic stop needs no space; a blank line always ends a sentence. Newlines stay with the
# sentence that they end, spaces go with the word that they precede.
_END = re.compile(
    r"""(?:(?<![.!?…])[.!?…]+["'”’»)\]]*(?=[ \t\n\r])|[。！？]+[”’」』）]*)[\r\n]*"""
    r"""|[\r\n][ \t]*[\r\n]\s*(?<=\n)"""
)
# After these a full stop does not end a sentence; a single capital is an initial.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(“\"'])(?:[A-Z]|Mrs?|Ms|Dr|St|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Messrs|Mme|Mlle|No|vs"
    r"|e\.g|i\.e|cf|etc|viz|al|pp?|vol|ch|fig)\.$"
)


def split_sentences(text: str) -> list[str]:
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
    ending = text[start:]
    if parts and not ending.strip():
        parts[-1] += ending
    elif ending:
        parts.append(ending)
    return parts


def _words(text: str) -> int:
    """Count what white space separates."""
    parts = (text[at : at + PART] for at in range(0, len(text), PART))
    count, joined = 0, False
    for part in parts:  # as a list the words of a long text take twenty times its bytes
        count += len(part.split()) - (joined and not part[0].isspace())
        joined = not part[-1].isspace()
    return count


@dataclasses.dataclass(frozen=True)
class Job:
    """One part of the corpus: its (split, text) pairs and the file to write."""

    path: str
    items: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns texts into a part file of arrays, the same bytes wherever it runs."""

    tokenizer: Tokenizer
    sentences: bool
    append_eos: bool

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id."""
        return np.dtype(np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32)

    def __call__(self, job: Job) -> None:
        """Write `job.path`: for each split its ids, document and sentence lengths, and counts."""
        arrays = {}
        for split in sorted({split for split, _ in job.items}):
            encoded = self._encode([text for s, text in job.items if s == split])
            arrays |= {f"{split}.{name}": array for name, array in encoded.items()}
        try:
            with files.replacing(pathlib.Path(job.path)) as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise StorageError(f"cannot write {job.path}: {cause_of(error, job.path)}") from None

    def _encode(self, texts: list[str]) -> dict[str, np.ndarray]:
        tokenizer = self.tokenizer
        pieces, lengths, sentence_lengths, document_sentences = [], [], [], []
        bos = np.array([tokenizer.bos_id], self.dtype)
        eos = np.array([tokenizer.eos_id] * self.append_eos, self.dtype)
        for text in texts:
            units = split_sentences(text) if self.sentences else [text]
            ids = [tokenizer.encode_array(unit, self.dtype) for unit in units]
            sizes = [len(i) for i in ids]
            pieces += [bos, *ids, eos]
            lengths.append(1 + sum(sizes) + len(eos))
            sentence_lengths += sizes
            document_sentences.append(len(sizes))
        tokens = np.concatenate(pieces)
        arrays = {"tokens": tokens, "documents": np.array(lengths, np.int64)}
        if self.sentences:
            arrays["sentences"] = np.array(sentence_lengths, np.int64)
            arrays["document_sentences"] = np.array(document_sentences, np.int64)
        counts = {
            "documents": len(texts),
            "tokens": len(tokens),
            "bytes": sum(len(text) if text.isascii() else len(text.encode()) for text in texts),
            "characters": sum(map(len, texts)),
            "words": sum(map(_words, texts)),
            "sentences": len(sentence_lengths) if self.sentences else 0,
            "unknown": np.count_nonzero(tokens == unknown_id(tokenizer)),
            "unrecoverable": sum(map(tokenizer.unrecoverable, texts)),
        }
        return arrays | {"counts": np.array([counts[name] for name in COUNTS], np.int64)}


class Workers:
    """Worker processes that encode jobs; on exit they are waited for, or killed after an error."""

    def __init__(self, count: int, encoder: Encoder, tokenizer_directory: str):
        setup = (tokenizer_directory, encoder.sentences, encoder.append_eos)
        self._all = [_Worker(setup) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = concurrent.futures.ThreadPoolExecutor(count)
        self._room = threading.Semaphore(2 * count)  # bounds the texts that wait in memory
        self._results: list[concurrent.futures.Future] = []

    def __enter__(self) -> "Workers":
        return self

    def submit(self, job: Job) -> None:
        """Hand over a job; blocks while enough are waiting, raises what an earlier one raised."""
        self._room.acquire()
        self._results.append(self._threads.submit(self._run, job))
        while self._results and self._results[0].done():
            self._results.pop(0).result()

    def _run(self, job: Job) -> None:
        worker = self._idle.get()
        try:
            worker(job)
        finally:
            self._idle.put(worker)
            self._room.release()

    def __exit__(self, kind, *exception) -> None:
        try:
            if kind is None:
                for result in self._results:
                    result.result()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._all:
                worker.end(now=kind is not None)


class _Worker:
    def __init__(self, setup: tuple):
        root = str(pathlib.Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from flaxlm.data.encode import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        pickle.dump(setup, self._process.stdin)

    def __call__(self, job: Job) -> None:
        try:
            pickle.dump(job, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise Preempted(
                f"an encoding process died (exit {self._process.wait()}); if memory ran out, set "
                "data.workers lower. The same command goes on from the finished parts"
            ) from None
        if answer is not None:
            raise answer

    def end(self, now: bool) -> None:
        if now:
            self._process.kill()
        with contextlib.suppress(OSError):  # a dead worker's pipe
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve() -> None:
    """Encode the jobs that come in on standard input until it closes: a worker's whole work."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may get into the answers
    jobs = sys.stdin.buffer
    directory, *options = pickle.load(jobs)
    run: Callable[[Job], None] = Encoder(load_tokenizer(directory), *options)
    while True:
        try:
            job = pickle.load(jobs)
        except (EOFError, pickle.UnpicklingError):  # the parent is gone, perhaps in mid-job
            return
        answer = None
        try:
            run(job)
        except FlaxlmError as error:
            answer = error
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent is gone; closing `answers` would only raise again
