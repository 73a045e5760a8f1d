"""What a run reads: its directory, its tokenizer, its corpus or examples, and batches of them."""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax

from flaxlm import files, sharding
from flaxlm.data import cache as token_cache
from flaxlm.data import shards
from flaxlm.data.order import Mixture
from flaxlm.data.pipeline import Batches, EvalBatches, loader
from flaxlm.data.sources import files_of, recorded
from flaxlm.data.sources import sources as find_sources
from flaxlm.data.tokenizer import Tokenizer, load_tokenizer
from flaxlm.errors import ConfigError, MissingInput, Unsafe
from flaxlm.interop import generation
from flaxlm.interop.pretrained import SCHEME, Directory
from flaxlm.processes import barrier, current
from flaxlm.progress import say
from flaxlm.training import config as run_config
from flaxlm.training import data_record, shared
from flaxlm.training.checkpoint import Checkpointer
from flaxlm.training.data_record import SplitRecord
from flaxlm.training.newest import CONFIG, begun, newest
from flaxlm.training.record import record
from flaxlm.training.values import changes
from flaxlm.training.workdir import Workdir, unwritable
from flaxlm.untrusted import parse_json


class Inputs:
    """A run's inputs, see `open`; the model of its `config` is as large as its tokenizer asks."""

    def __init__(self, config: run_config.RunConfig, workdir: pathlib.Path, tokenizer: Tokenizer):
        self.config, self.workdir, self.tokenizer = config, workdir, tokenizer
        self._examples: dict[str, list] = {}
        self._found: dict[str, list] = {}  # what the examples of a split were read from
        self._records: dict[str, SplitRecord] = {}
        self._evaluation: dict[tuple[str, int], list] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: run_config.RunConfig, workdir: pathlib.Path, write: bool = True):
        """Check a directory against a config, make or reuse its tokenizer; yield the Inputs.

        Args:
          config, workdir: of the run; the directory is made if it is not there.
          write: whether to change the directory: lock it, and record config, command and versions.

        Raises:
          Unsafe: another run holds the directory, or it holds a run of another config.
          DataError, MissingInput: an input cannot be used.
        """
        lead = jax.process_index() == 0
        lock = Workdir(workdir, lock=lead) if write else contextlib.nullcontext()
        with lock:
            if write:
                shared.check_disk(workdir)
            if write and lead:
                if not config.model.vocab_size:  # the tokenizer's
                    find_tokenizer(config, workdir)
                try:
                    record(run_config.sized(config, workdir), workdir)
                except OSError as error:
                    raise unwritable(workdir, error) from None
                find_tokenizer(config, workdir)
                keep_generation(config, workdir)
            barrier("tokenizer")
            tokenizer = load_tokenizer(workdir / "tokenizer")
            inputs = cls(run_config.sized(config, workdir), workdir, tokenizer)
            shared.agree("tokenizer", tokenizer.hash, lambda theirs, its: [its])
            inputs.check_vocabulary()
            inputs.check_checkpoints()
            yield inputs

    def check_vocabulary(self) -> None:
        """Refuse a tokenizer with ids that the model has no rows for."""
        size = self.config.model.vocab_size
        if self.config.init.startswith(SCHEME):
            self.tokenizer.restrict(size)
        if self.tokenizer.vocab_size > size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} ids and the model "
                f"model.vocab_size={size} rows; set model.vocab_size={self.tokenizer.vocab_size}"
            )

    def check_checkpoints(self) -> None:
        """Refuse another tokenizer than the newest checkpoint's, or without one that of `init`."""
        for run in filter(None, (self.workdir, self.config.init)):
            if str(run).startswith(SCHEME):
                if Directory(run).tokenizer().hash != self.tokenizer.hash:
                    raise Unsafe(
                        f"{self.workdir / 'tokenizer'} is not the tokenizer of init={run}; "
                        "remove it, or take another run directory"
                    )
                continue
            saved = Checkpointer(run, read_only=True)
            records = saved.records()  # read once: a run beside may delete any of them
            if not records:
                continue
            step = max(records)
            trained = records[step].extra.get("tokenizer", self.tokenizer.hash)
            if trained != self.tokenizer.hash:
                raise Unsafe(
                    f"{self.workdir / 'tokenizer'} ({self.tokenizer.hash[:12]}) is not the "
                    f"tokenizer that {saved.path(step)} was trained with ({trained[:12]}); copy "
                    f"{saved.path(step) / 'tokenizer'} there, or take another run directory"
                )
            return

    @functools.cached_property
    def generation(self) -> dict:
        """What the files of the model that the run began with say of generating texts."""
        return generation.read_settings(self.workdir)

    @functools.cached_property
    def caches(self) -> list[pathlib.Path]:
        """Token caches of the corpus, one for each weighted path; made where they are missing."""
        lead = jax.process_index() == 0
        if not lead:
            barrier("token cache")
        source = (self.config.data, self.config.tokenizer, self.workdir)
        _, caches = token_cache.prepare(*source, build=lead)
        if lead:
            barrier("token cache")
        return caches

    def examples(self, split: str) -> list[dict]:
        """Return a task's examples of a split."""
        if split not in self._examples:
            labels = getattr(self.config.objective, "labels", ())
            with recorded() as found:
                self._examples[split] = self.config.task.examples(self.config.data, split, labels)
            self._found[split] = list(found)
        return self._examples[split]

    def amount(self, split: str) -> dict[str, int]:
        """Return how much a split holds, and how much was read: `examples`, or `bytes` of text."""
        if self.config.task.objective or self.config.task.ranks:
            examples = self.examples(split)
            read = getattr(examples, "read", len(examples))
            return {"examples": len(examples), "examples_read": read}

        def size(splits) -> int:
            return sum(source.counts["bytes"] for name in splits for source in self.sources(name))

        data = self.config.data
        splits = [split] if data.split == "file" else data.cached_splits()
        return {"bytes": size([split]), "bytes_read": size(splits)}

    def sources(self, split: str) -> list:
        """Return what the objective plans rows over: token caches, or a task's examples."""
        if self.config.task.objective:
            return [self.examples(split)]
        split = "train" if self.config.data.split == "whole" else split
        caches = [
            shards.open_cache(path, split, tokenizer_hash=self.tokenizer.hash)
            for path in self.caches
        ]
        if self.tokenizer.beyond:  # which the processes that fill a cache know nothing of
            self.tokenizer.readable([cache.largest for cache in caches])
        return caches

    def _plans(self, split: str, shuffle: bool) -> list:
        plan = functools.partial(self.config.objective.plan, seed=self.config.seed, shuffle=shuffle)
        length = self.config.train.length
        return [plan(source, length, self.tokenizer) for source in self.sources(split)]

    def _batches(self, kind: type, plan, batch_size: int):
        config, train = self.config, self.config.train
        row = (config.objective, self.tokenizer, train.length, config.seed)
        return kind(plan, *row, batch_size, train.shorter)

    def train(self, batch_size: int) -> Batches:
        """Return the training batches: batch i is a function of (seed, i)."""
        if self.config.task.ranks:
            raise ConfigError(
                f"nothing is trained for task.name={self.config.task_name!r}, it is only "
                "evaluated; train with task.name='text'"
            )
        if self.config.data.split == "whole":
            raise ConfigError(
                "data.split='whole' holds nothing out to be judged by; choose hash, tail, or file "
                "with data.valid_path"
            )
        plans = self._plans("train", shuffle=True)
        plan = Mixture(plans, self.config.data.weights) if len(plans) > 1 else plans[0]
        return self._batches(Batches, plan, batch_size)

    def evaluation(self, split: str, batch_size: int) -> list[EvalBatches]:
        """Return, for each corpus, the batches of a split in which each row stands once."""
        data = self.config.data
        if split not in data.split_names():
            raise ConfigError(data.lacks(split))
        if (split, batch_size) not in self._evaluation:
            plans = self._plans(split, shuffle=False)
            batches = [self._batches(EvalBatches, plan, batch_size) for plan in plans]
            self._evaluation[split, batch_size] = batches
        return self._evaluation[split, batch_size]

    def counts(self, split: str) -> dict:
        """Return bytes and words of a split's text; empty for tasks."""
        if self.config.task.objective:
            return {}
        counts = [source.counts for source in self.sources(split)]
        return {name: sum(c[name] for c in counts) for name in ("bytes", "words")}

    def stream(self, batches: Batches, program, start: int, stop: int):
        """Yield global batches start, start + 1, … made ahead by threads, each host its rows."""
        size, data = batches.batch_size, self.config.data
        rows = sharding.host_rows(program.batch_sharding, size)
        ahead = {"threads": data.threads, "prefetch": data.prefetch}
        for host in loader(batches, start, stop, rows=rows, **ahead):
            yield sharding.to_global(host, rows[0], size, program.batch_sharding)

    def data(self, splits: Sequence[str]) -> dict[str, SplitRecord]:
        """Return what splits are read from, by split."""
        return {split: self._record(split) for split in splits}

    def _record(self, split: str) -> SplitRecord:
        if split in self._records:
            return self._records[split]
        data, contents = self.config.data, []
        if self.config.task.objective or self.config.task.ranks:
            rows = self.amount(split)
            facts = [data_record.facts_of(name) for name in files_of(self._found[split])]
        else:
            sources, facts = self.sources(split), []
            for corpus, cache in zip(data.corpora(), sources, strict=True):
                known = {file["path"]: file for file in cache.manifest["source"]["files"]}
                for name in files_of(find_sources(corpus, split)):
                    facts.append({key: known[name][key] for key in ("path", "bytes", "sha256")})
                contents.append(cache.content)
            rows = {n: sum(cache.counts[n] for cache in sources) for n in ("documents", "tokens")}
        self._records[split] = SplitRecord(rows, facts, contents)
        return self._records[split]

    @property
    def trained_on(self) -> list[str]:
        """The splits that decide a run's bits: `train`, and the one that it is judged by."""
        names = self.config.data.split_names()
        return [name for name in dict.fromkeys(("train", self.config.eval.split)) if name in names]

    def identity(self, splits: Sequence[str] | None = None) -> dict:
        """Return the hashes that a checkpoint's manifest holds, equal on equal inputs.

        Args:
          splits: those whose data is included, read for it; None: those of `trained_on`.
        """
        text = json.dumps(self.config.raw, sort_keys=True).encode()
        facts = {"config": hashlib.sha256(text).hexdigest(), "tokenizer": self.tokenizer.hash}
        data = self.data(self.trained_on if splits is None else splits)
        return facts | {"data": {split: record.identity() for split, record in data.items()}}

    def check_data(self, saved: Checkpointer) -> None:
        """Refuse to go on from a checkpoint that was trained on other data.

        Raises:
          Unsafe: a file was changed, is missing or new, or other rows were read of it.
        """
        step = saved.latest()
        if step is None:
            return
        before = saved.manifest(step).extra.get("data")
        if isinstance(before, dict):
            differ = self.other_data(saved, step, self.trained_on)
        elif before and not self.config.data.test_path:  # of before 2026-11-26: whole caches
            same = before == [source.hash for source in self.sources("train")]
            differ = [] if same else [f"{', '.join(self.config.data.paths)} holds other text"]
        else:
            differ = []
            say(f"{saved.path(step)} does not say what data it was trained on: not compared")
        if differ:
            if (own := newest(self.workdir)) and jax.process_index() == 0:
                files.replace(self.workdir / CONFIG, (own[0] / CONFIG).read_bytes())
            raise Unsafe(
                f"{self.workdir} was trained on other data up to step {step}, and a run on these "
                f"has other batches from step 1 on: {'; '.join(differ)}. Restore what was read, or "
                "take another run directory"
            )

    def other_data(self, saved: Checkpointer, step: int, splits: Sequence[str]) -> list[str]:
        """Return a line for each thing that tells splits from those that a checkpoint names."""
        before, listed = saved.manifest(step).extra.get("data"), {}
        with contextlib.suppress(OSError, ValueError):
            listed = parse_json((saved.path(step) / data_record.FILE).read_bytes(), whole=False)
        known = before if isinstance(before, dict) else {}
        now = self.data([split for split in splits if split in known])
        return data_record.differences(known, now, listed)

    def agree(self, splits: Sequence[str]) -> None:
        """End all processes where one reads other rows of splits than process 0."""
        if current():
            shared.agree_on_data(self.data(splits))

    def files(self) -> dict:
        """Return what makes a checkpoint open by itself."""
        kept = self.workdir / generation.FILE
        return {
            "config.json": self.config.to_json().encode(),
            **({data_record.FILE: data_record.listing(self._records)} if self._records else {}),
            "tokenizer": self.workdir / "tokenizer",
            **({generation.FILE: kept} if kept.exists() else {}),
        }


def find_tokenizer(config: run_config.RunConfig, workdir: pathlib.Path) -> None:
    """See to WORKDIR/tokenizer: as it lies there → `init`'s → `tokenizer.path`'s → a new one."""
    own = workdir / "tokenizer"
    made = (own / "tokenizer.json").exists()
    if config.init.startswith(SCHEME):
        if not made:
            Directory(config.init).tokenizer().save(own)
    elif config.init and not (made and begun(workdir)):
        source = pathlib.Path(config.init) / "tokenizer"
        if not source.is_dir():
            raise MissingInput(f"init={config.init} has no tokenizer: {source} is not there")
        theirs = run_config.read_run(config.init).get("tokenizer", {})
        ours = {key: config.raw["tokenizer"].get(key) for key in theirs}
        if changed := changes({"tokenizer": theirs}, {"tokenizer": ours}):
            raise ConfigError(
                f"init={config.init} brings its tokenizer along, so these keys would have no "
                f"effect; leave them out: {'; '.join(changed)}"
            )
        if not made:
            load_tokenizer(source).save(own)
    elif not config.init:

        def texts() -> Iterator[str]:
            labels = getattr(config.objective, "labels", ())
            examples = config.task.examples(config.data, "train", labels)
            keys = ("text", "text_pair", "target")
            return (example[key] for example in examples for key in keys if key in example)

        given = {"texts": texts} if config.task.objective else {}
        token_cache.prepare_tokenizer(config.data, config.tokenizer, workdir, **given)


def keep_generation(config: run_config.RunConfig, workdir: pathlib.Path) -> None:
    """See to WORKDIR/generation_config.json: as it lies there → as `init` has it → none."""
    own, fields = workdir / generation.FILE, {}
    here = own.exists() or begun(workdir)
    if not here and config.init and config.init_weights:
        if config.init.startswith(SCHEME):
            fields = Directory(config.init).generation()
        else:
            fields = generation.read_settings(pathlib.Path(config.init))
    if fields:
        files.replace(own, json.dumps(fields, indent=1) + "\n")
