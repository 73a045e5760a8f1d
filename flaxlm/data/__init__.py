"""From files to token ids: sources, tokenizers, caches and the order of batches. No jax here."""
