"""Parameters of `transformers` models in our layout, for parity tests alone."""

import numpy as np

HEADS, SIZE = 4, 8


def randomise(model, seed: int, std: float = 0.2):
    """Fill every parameter from a normal: at the usual 0.02 a wrong GELU hides in the noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            is_scale = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
            parameter.copy_(1 + noise if is_scale else noise)
    return model.eval()


class Reader:
    """Reads tensors (or their gradients) of one model by name."""

    def __init__(self, model, gradients: bool = False):
        self.tensors = {
            name: (p.grad if gradients else p).detach().numpy()
            for name, p in model.named_parameters()
        }

    def linear(self, name, inputs=None, outputs=None):
        """A Linear layer: its kernel is stored outputs × inputs."""
        kernel = self.tensors[f"{name}.weight"].T
        out = {
            "kernel": kernel.reshape((inputs or kernel.shape[:1]) + (outputs or kernel.shape[1:]))
        }
        if f"{name}.bias" in self.tensors:
            bias = self.tensors[f"{name}.bias"]
            out["bias"] = bias.reshape(outputs or bias.shape)
        return out

    def norm(self, name):
        out = {"scale": self.tensors[f"{name}.weight"]}
        return out | (
            {"bias": self.tensors[f"{name}.bias"]} if f"{name}.bias" in self.tensors else {}
        )

    def attention(self, names, kv_heads=HEADS):
        q, k, v, o = names
        heads, kv = (HEADS, SIZE), (kv_heads, SIZE)
        return {
            "query": self.linear(q, outputs=heads),
            "key": self.linear(k, outputs=kv),
            "value": self.linear(v, outputs=kv),
            "out": self.linear(o, inputs=heads),
        }


def stacked(layers):
    """Stack a list of equal trees."""
    first = layers[0]
    if isinstance(first, dict):
        return {key: stacked([layer[key] for layer in layers]) for key in first}
    return np.stack(layers)


def gpt2(model, gradients=False):
    r = Reader(model, gradients)
    t = r.tensors

    def conv(name, inputs=None):
        kernel = t[f"{name}.weight"]
        return {
            "kernel": kernel.reshape((*(inputs or kernel.shape[:1]), kernel.shape[1])),
            "bias": t[f"{name}.bias"],
        }

    def layer(i):
        h = f"transformer.h.{i}"
        joint = conv(f"{h}.attn.c_attn")
        parts = {
            name: {
                "kernel": np.split(joint["kernel"], 3, 1)[j].reshape(-1, HEADS, SIZE),
                "bias": np.split(joint["bias"], 3)[j].reshape(HEADS, SIZE),
            }
            for j, name in enumerate(("query", "key", "value"))
        }
        return {
            "attention": parts | {"out": conv(f"{h}.attn.c_proj", (HEADS, SIZE))},
            "attention_norm": r.norm(f"{h}.ln_1"),
            "mlp": {"up": conv(f"{h}.mlp.c_fc"), "down": conv(f"{h}.mlp.c_proj")},
            "mlp_norm": r.norm(f"{h}.ln_2"),
        }

    return {
        "embed": {"token": t["transformer.wte.weight"], "position": t["transformer.wpe.weight"]},
        "decoder": {
            "layers": stacked([layer(i) for i in range(model.config.n_layer)]),
            "final_norm": r.norm("transformer.ln_f"),
        },
    }


def bert(model, gradients=False):
    r = Reader(model, gradients)
    e = "bert.embeddings"

    def layer(i):
        h = f"bert.encoder.layer.{i}"
        names = [f"{h}.attention.self.{x}" for x in ("query", "key", "value")]
        return {
            "attention": r.attention([*names, f"{h}.attention.output.dense"]),
            "attention_norm": r.norm(f"{h}.attention.output.LayerNorm"),
            "mlp": {
                "up": r.linear(f"{h}.intermediate.dense"),
                "down": r.linear(f"{h}.output.dense"),
            },
            "mlp_norm": r.norm(f"{h}.output.LayerNorm"),
        }

    return {
        "embed": {
            "token": r.tensors[f"{e}.word_embeddings.weight"],
            "position": r.tensors[f"{e}.position_embeddings.weight"],
            "token_type": r.tensors[f"{e}.token_type_embeddings.weight"],
            "norm": r.norm(f"{e}.LayerNorm"),
        },
        "encoder": {"layers": stacked([layer(i) for i in range(model.config.num_hidden_layers)])},
        "heads": {
            "pooler": r.linear("bert.pooler.dense"),
            "transform": r.linear("cls.predictions.transform.dense"),
            "transform_norm": r.norm("cls.predictions.transform.LayerNorm"),
            "mlm": {"bias": r.tensors["cls.predictions.bias"]},
            "nsp": r.linear("cls.seq_relationship"),
        },
    }


def llama(model, gradients=False):
    r = Reader(model, gradients)

    def layer(i):
        h = f"model.layers.{i}"
        names = [f"{h}.self_attn.{x}_proj" for x in "qkvo"]
        return {
            "attention": r.attention(names, model.config.num_key_value_heads),
            "attention_norm": r.norm(f"{h}.input_layernorm"),
            "mlp": {x: r.linear(f"{h}.mlp.{x}_proj") for x in ("gate", "up", "down")},
            "mlp_norm": r.norm(f"{h}.post_attention_layernorm"),
        }

    return {
        "embed": {"token": r.tensors["model.embed_tokens.weight"]},
        "decoder": {
            "layers": stacked([layer(i) for i in range(model.config.num_hidden_layers)]),
            "final_norm": r.norm("model.norm"),
        },
        "heads": {"lm": r.linear("lm_head")},
    }


def t5(model, gradients=False):
    r = Reader(model, gradients)
    gated = model.config.is_gated_act

    def layer(side, i):
        h = f"{side}.block.{i}.layer"
        mlp = 2 if side == "decoder" else 1
        dense = f"{h}.{mlp}.DenseReluDense"
        out = {
            "attention": r.attention([f"{h}.0.SelfAttention.{x}" for x in "qkvo"]),
            "attention_norm": r.norm(f"{h}.0.layer_norm"),
            "mlp": {
                "up": r.linear(f"{dense}.wi_1" if gated else f"{dense}.wi"),
                "down": r.linear(f"{dense}.wo"),
            },
            "mlp_norm": r.norm(f"{h}.{mlp}.layer_norm"),
        }
        if gated:
            out["mlp"]["gate"] = r.linear(f"{dense}.wi_0")
        if side == "decoder":
            out["cross_attention"] = r.attention([f"{h}.1.EncDecAttention.{x}" for x in "qkvo"])
            out["cross_attention_norm"] = r.norm(f"{h}.1.layer_norm")
        return out

    def stack(side):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {
            "layers": stacked([layer(side, i) for i in range(model.config.num_layers)]),
            "relative": {"table": r.tensors[bias]},
            "final_norm": r.norm(f"{side}.final_layer_norm"),
        }

    tree = {
        "embed": {"token": r.tensors["shared.weight"]},
        "encoder": stack("encoder"),
        "decoder": stack("decoder"),
    }
    return tree if not gated else tree | {"heads": {"lm": r.linear("lm_head")}}
