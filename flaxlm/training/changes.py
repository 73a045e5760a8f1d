"""What differs between a run's config and the one that it is to go on with."""

from flaxlm.training.values import as_tuples

# What a resumed run may change: how long, how often, how it is shown and saved, where it runs.
FREE = (
    "seeds", "baseline", "train.steps", "train.tokens", "train.epochs", "train.log_every",
    "train.profile_steps", "train.stuck_after", "train.skip_nonfinite", "eval.every",
    "eval.batch_size", "checkpoint.", "sharding.", "data.workers", "data.threads",
    "data.prefetch", "data.cache_dir",
    "data.test_path",
)  # fmt: skip


def changes(old: dict, new: dict) -> list[str]:
    """Return a line for each key that differs and that a resumed run must not change."""
    lines = []
    for section in sorted(old.keys() | new.keys()):
        before, after = old.get(section), new.get(section)
        if not isinstance(before, dict) or not isinstance(after, dict):
            before, after = {"": before}, {"": after}
        for key in sorted(before.keys() | after.keys()):
            path = f"{section}.{key}" if key else section
            if as_tuples(before.get(key)) != as_tuples(after.get(key)) and not path.startswith(
                FREE
            ):
                lines.append(f"{path}: {before.get(key)!r} -> {after.get(key)!r}")
    return lines
