"""Defaults for what a batch leaves out."""

import jax
import jax.numpy as jnp


def default_positions(tokens_BL: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
    """Return int32 [B, L]: the index in a row, restarting where the segment changes."""
    index_BL = jnp.broadcast_to(
        jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None], tokens_BL.shape
    )
    if segments_BL is None:
        return index_BL
    changed = segments_BL[:, 1:] != segments_BL[:, :-1]
    start_BL = jnp.where(jnp.pad(changed, [(0, 0), (1, 0)]), index_BL, 0)
    return index_BL - jax.lax.cummax(start_BL, axis=1)


def positions_of(batch: dict, prefix: str = "") -> jax.Array:
    """Return the batch's positions [B, L], or their default; `prefix` is "" or "encoder_"."""
    positions = batch.get(f"{prefix}positions")
    if positions is not None:
        return positions
    return default_positions(batch[f"{prefix}tokens"], batch.get(f"{prefix}segment_ids"))


def segments_of(batch: dict, prefix: str = "") -> jax.Array:
    """Return the batch's segment ids [B, L], by default all ones."""
    segments = batch.get(f"{prefix}segment_ids")
    return jnp.ones_like(batch[f"{prefix}tokens"]) if segments is None else segments
