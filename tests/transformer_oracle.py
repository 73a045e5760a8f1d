"""A slow Transformer in float64 NumPy: loops over rows, heads and queries, no shared code."""

import math

import numpy as np


def dense(p, x):
    y = x @ p["kernel"].reshape(x.shape[-1], -1)
    return y + p["bias"].reshape(-1) if "bias" in p else y


def norm(c, p, x):
    if c.norm == "layernorm":
        x = x - x.mean()
    y = x / math.sqrt((x * x).mean() + c.norm_epsilon) * p["scale"]
    return y + p["bias"] if "bias" in p else y


def activation(name, x):
    erf = np.vectorize(math.erf)
    return {
        "gelu": lambda: x * 0.5 * (1 + erf(x / math.sqrt(2))),
        "gelu_tanh": lambda: (
            x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        ),
        "relu": lambda: x * (x > 0),
        "silu": lambda: x / (1 + np.exp(-x)),
        "tanh": lambda: np.tanh(x),
    }[name]()


def bucket(distance, buckets, max_distance, causal):
    """T5's bucket of query − key."""
    first = 0
    if not causal:
        buckets //= 2
        first, distance = (buckets, -distance) if distance < 0 else (0, distance)
    distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    steps = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + int(steps * (buckets - exact) + 1e-6), buckets - 1)


def turn(c, x, position):
    """Rotate one head's vector."""
    y, half = x.copy(), c.head_dim // 2
    for i in range(half):
        angle = position * c.rope_theta ** (-2 * i / c.head_dim)
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return y


def attention(c, p, relative, x, sees, positions, window, causal):
    """One row: x [L, D], sees(query, key) → bool."""
    length = len(x)
    q = dense(p["query"], x).reshape(length, c.num_heads, c.head_dim)
    k = dense(p["key"], x).reshape(length, c.num_kv_heads, c.head_dim)
    v = dense(p["value"], x).reshape(length, c.num_kv_heads, c.head_dim)
    scale = c.attention_scale or 1 / math.sqrt(c.head_dim)
    mixed = np.zeros_like(q)
    for head in range(c.num_heads):
        kv = head // (c.num_heads // c.num_kv_heads)
        for i in range(length):
            keys = [j for j in range(length) if sees(i, j) and (not window or abs(i - j) < window)]
            scores = []
            for j in keys:
                a, b = q[i, head], k[j, kv]
                if c.positions == "rotary":
                    a, b = turn(c, a, positions[i]), turn(c, b, positions[j])
                score = a @ b * scale
                if relative is not None:
                    at = bucket(i - j, c.relative_buckets, c.relative_max_distance, causal)
                    score += relative[at, head]
                scores.append(score)
            weight = np.exp(np.array(scores) - max(scores))
            mixed[i, head] = (weight / weight.sum()) @ v[keys, kv]
    return dense(p["out"], mixed.reshape(length, -1))


def feed_forward(c, p, x):
    if c.gated:
        return dense(p["down"], activation(c.activation, dense(p["gate"], x)) * dense(p["up"], x))
    return dense(p["down"], activation(c.activation, dense(p["up"], x)))


def layer_of(tree, i):
    return {k: layer_of(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def forward(c, params, batch, family):
    """Return LM logits [B, L, V] of an encoder or a decoder."""
    causal = family == "decoder"
    embed, stack = params["embed"], params[family]
    rows = []
    for b, tokens in enumerate(batch["tokens"]):
        segments, positions = batch["segment_ids"][b], batch["positions"][b]
        x = embed["token"][tokens] * c.embed_scale
        if c.positions == "learned":
            x = x + embed["position"][positions]
        if c.positions == "sinusoidal":
            half = np.arange(c.width // 2)
            angle = positions[:, None] * 10_000.0 ** (-2 * half / c.width)
            x = x + np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        if c.token_types:
            x = x + embed["token_type"][batch["token_types"][b]]
        each = lambda p, x: np.stack([norm(c, p, row) for row in x])  # noqa: E731
        if c.embed_norm:
            x = each(embed["norm"], x)
        prefix = batch.get("prefix_mask", np.zeros_like(batch["tokens"]))[b]

        def sees(i, j, segments=segments, prefix=prefix):
            return segments[i] == segments[j] and (not causal or j <= i or prefix[j] == 1)

        relative = stack["relative"]["table"] if c.positions == "relative" else None
        for i in range(c.num_layers):
            p = layer_of(stack["layers"], i)
            window = c.windows[i % len(c.windows)] if c.windows else 0
            for name in ("attention", "mlp"):
                y = each(p[f"{name}_norm"], x) if c.norm_position == "pre" else x
                if name == "attention":
                    y = attention(c, p[name], relative, y, sees, positions, window, causal)
                else:
                    y = feed_forward(c, p[name], y)
                x = x + y
                if c.norm_position == "post":
                    x = each(p[f"{name}_norm"], x)
        if c.final_norm:
            x = each(stack["final_norm"], x)
        kernel = embed["token"].T if c.tied else params["heads"]["lm"]["kernel"]
        logits = x * c.output_scale @ kernel
        if c.output_bias:
            logits = logits + params["heads"]["lm"]["bias"]
        rows.append(logits[:, : c.vocab_size])
    return np.stack(rows)
