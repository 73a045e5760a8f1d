"""What the most downloaded checkpoints of the supported families say of themselves: facts.

They are, as far as known in November 2026: here the keys of `config.json` and the tensors that all
files of a family have, and in hub_table.py what single ones add. Files change; where one came in
several forms (a pickle first, safetensors later), the one that is hardest to read stands here.
`write` makes a directory of one at a reduced size, with random numbers.
"""

import json
import re
from typing import NamedTuple

import numpy as np
import safetensors.numpy

LAYERS = 2
# Sizes that stand for the real ones, by the letters of the tables below; X is a scalar's.
DIMS = dict(V=40, H=16, I=12, P=14, E=4, D=8, K=8, F=48, G=64, N=3, T=2, B=6, R=16, one=1, two=2)
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "n_embd": 16, "dim": 16, "d_model": 16,
    "intermediate_size": 12, "hidden_dim": 12, "d_ff": 12, "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12, "n_inner": 12, "max_position_embeddings": 14, "n_positions": 14,
    "n_ctx": 14, "embedding_size": 4,
    "num_hidden_layers": LAYERS, "n_layers": LAYERS, "n_layer": LAYERS, "num_layers": LAYERS,
    "num_decoder_layers": LAYERS, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "num_attention_heads": 2, "n_heads": 2, "n_head": 2, "num_heads": 2, "head_dim": 8, "d_kv": 8,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_key_value_heads": 1,
    "relative_attention_num_buckets": 6, "sliding_window": 8,
}  # fmt: skip


class Family(NamedTuple):
    """Keys of `config.json` that all files of a family have, and the tensors of its backbone.

    A line of `tensors` is a name and a shape. A name that does not end in `.weight` or `.bias` has
    both (the bias of the first dimension); `*` is each layer, `(a|b)` each of two, and `~` the
    backbone's prefix.
    """

    model_type: str
    keys: dict
    tensors: str


_BERT_KEYS = dict(
    attention_probs_dropout_prob=0.1, hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=768,
    initializer_range=0.02, intermediate_size=3072, layer_norm_eps=1e-12, num_hidden_layers=12,
    max_position_embeddings=512, num_attention_heads=12, pad_token_id=0, type_vocab_size=2,
    vocab_size=30522,
)  # fmt: skip
_BERT = """
~embeddings.word_embeddings.weight V H
~embeddings.position_embeddings.weight P H
~embeddings.token_type_embeddings.weight T H
~embeddings.LayerNorm H
~encoder.layer.*.attention.(self.query|self.key|self.value|output.dense) H H
~encoder.layer.*.(attention.output|output).LayerNorm H
~encoder.layer.*.intermediate.dense I H
~encoder.layer.*.output.dense H I
"""
_ROBERTA_KEYS = _BERT_KEYS | dict(
    layer_norm_eps=1e-5, max_position_embeddings=514, type_vocab_size=1, bos_token_id=0,
    eos_token_id=2, pad_token_id=1, vocab_size=50265,
)  # fmt: skip
_ROBERTA = _BERT.replace("embeddings.weight P H", "embeddings.weight R H").replace("T H", "one H")
_LLAMA_KEYS = dict(
    hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008,
    max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=32, use_cache=True,
    num_key_value_heads=8, rms_norm_eps=1e-5, torch_dtype="bfloat16", vocab_size=32000,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_LLAMA = """
~embed_tokens.weight V H
~layers.*.self_attn.q_proj.weight H H
~layers.*.self_attn.(k_proj|v_proj).weight K H
~layers.*.self_attn.o_proj.weight H H
~layers.*.mlp.(gate_proj|up_proj).weight I H
~layers.*.mlp.down_proj.weight H I
~layers.*.(input_layernorm|post_attention_layernorm).weight H
~norm.weight H
"""
_QWEN2 = (
    _LLAMA
    + """
~layers.*.self_attn.q_proj.bias H
~layers.*.self_attn.(k_proj|v_proj).bias K
"""
)
_QK_NORM = "~layers.*.self_attn.(q_norm|k_norm).weight D\n"
_GEMMA = _LLAMA + "~layers.*.(pre_feedforward_layernorm|post_feedforward_layernorm).weight H\n"
_T5_KEYS = dict(
    d_ff=2048, d_kv=64, d_model=512, decoder_start_token_id=0, dropout_rate=0.1, eos_token_id=1,
    initializer_factor=1.0, is_encoder_decoder=True, layer_norm_epsilon=1e-6, num_heads=8,
    num_layers=6, pad_token_id=0, relative_attention_num_buckets=32, vocab_size=32128,
)  # fmt: skip
_T5_SIDE = """
~SIDE.block.*.layer.(0.SelfAttention|1.EncDecAttention).(q|k|v|o).weight H H
~SIDE.block.*.layer.(0|1|2).layer_norm.weight H
~SIDE.block.*.layer.2.DenseReluDense.wi.weight I H
~SIDE.block.*.layer.2.DenseReluDense.wo.weight H I
~SIDE.block.0.layer.0.SelfAttention.relative_attention_bias.weight B two
~SIDE.final_layer_norm.weight H
"""
_T5_ENCODER = (
    _T5_SIDE.replace("(0.SelfAttention|1.EncDecAttention)", "0.SelfAttention")
    .replace("(0|1|2)", "(0|1)").replace("layer.2.", "layer.1.").replace("SIDE", "encoder")
)  # fmt: skip
_T5 = "~shared.weight V H\n" + _T5_ENCODER + _T5_SIDE.replace("SIDE", "decoder")
_GATED = _T5.replace("DenseReluDense.wi.", "DenseReluDense.(wi_0|wi_1).")
_BART_SIDE = """
~SIDE.embed_positions.weight R H
~SIDE.layernorm_embedding H
~SIDE.layers.*.(self_attn|encoder_attn).(q_proj|k_proj|v_proj|out_proj) H H
~SIDE.layers.*.(self_attn_layer_norm|encoder_attn_layer_norm|final_layer_norm) H
~SIDE.layers.*.fc1 I H
~SIDE.layers.*.fc2 H I
"""
_BART = "~shared.weight V H\n" + _BART_SIDE.replace("SIDE", "decoder") + (
    _BART_SIDE.replace("(self_attn|encoder_attn)", "self_attn")
    .replace("self_attn_layer_norm|encoder_attn_layer_norm", "self_attn_layer_norm")
    .replace("SIDE", "encoder")
)  # fmt: skip

FAMILIES = {
    "bert": Family("bert", _BERT_KEYS, _BERT),
    "roberta": Family("roberta", _ROBERTA_KEYS, _ROBERTA),
    "xlm-roberta": Family("xlm-roberta", _ROBERTA_KEYS | {"vocab_size": 250002}, _ROBERTA),
    "electra": Family(
        "electra", _BERT_KEYS | {"embedding_size": 128},
        _BERT.replace("H\n~embeddings.pos", "E\n~embeddings.pos").replace("P H", "P E")
        .replace("T H\n~embeddings.LayerNorm H", "T E\n~embeddings.LayerNorm E")
        + "~embeddings_project H E",
    ),
    "distilbert": Family(
        "distilbert",
        dict(activation="gelu", attention_dropout=0.1, dim=768, dropout=0.1, hidden_dim=3072,
             initializer_range=0.02, max_position_embeddings=512, n_heads=12, n_layers=6,
             pad_token_id=0, qa_dropout=0.1, seq_classif_dropout=0.2, sinusoidal_pos_embds=False,
             tie_weights_=True, vocab_size=30522),
        """
        ~embeddings.word_embeddings.weight V H
        ~embeddings.position_embeddings.weight P H
        ~embeddings.LayerNorm H
        ~transformer.layer.*.attention.(q_lin|k_lin|v_lin|out_lin) H H
        ~transformer.layer.*.(sa_layer_norm|output_layer_norm) H
        ~transformer.layer.*.ffn.lin1 I H
        ~transformer.layer.*.ffn.lin2 H I
        """,
    ),
    "albert": Family(
        "albert",
        _BERT_KEYS | dict(attention_probs_dropout_prob=0, hidden_dropout_prob=0, bos_token_id=2,
            eos_token_id=3, classifier_dropout_prob=0.1, down_scale_factor=1, embedding_size=128,
            gap_size=0, inner_group_num=1, net_structure_type=0, num_hidden_groups=1,
            num_memory_blocks=0, vocab_size=30000),
        """
        ~embeddings.word_embeddings.weight V E
        ~embeddings.position_embeddings.weight P E
        ~embeddings.token_type_embeddings.weight T E
        ~embeddings.LayerNorm E
        ~encoder.embedding_hidden_mapping_in H E
        ~encoder.albert_layer_groups.0.albert_layers.0.attention.(query|key|value|dense) H H
        ~encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm H
        ~encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm H
        ~encoder.albert_layer_groups.0.albert_layers.0.ffn I H
        ~encoder.albert_layer_groups.0.albert_layers.0.ffn_output H I
        """,
    ),
    "gpt2": Family(
        "gpt2",
        dict(activation_function="gelu_new", attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1,
             eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-5, n_ctx=1024,
             n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1,
             summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
             summary_type="cls_index", summary_use_proj=True, vocab_size=50257),
        """
        ~wte.weight V H
        ~wpe.weight P H
        ~h.*.(ln_1|ln_2) H
        ~h.*.attn.c_attn.weight H F
        ~h.*.attn.c_attn.bias F
        ~h.*.attn.c_proj H H
        ~h.*.mlp.c_fc.weight H G
        ~h.*.mlp.c_fc.bias G
        ~h.*.mlp.c_proj.weight G H
        ~h.*.mlp.c_proj.bias H
        ~ln_f H
        """,
    ),
    "gpt_neox": Family(
        "gpt_neox",
        dict(bos_token_id=0, eos_token_id=0, hidden_act="gelu", hidden_size=512,
             initializer_range=0.02, intermediate_size=2048, layer_norm_eps=1e-5,
             max_position_embeddings=2048, num_attention_heads=8, num_hidden_layers=6,
             rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
             torch_dtype="float16", use_cache=True, vocab_size=50304),
        """
        ~embed_in.weight V H
        ~layers.*.(input_layernorm|post_attention_layernorm) H
        ~layers.*.attention.query_key_value F H
        ~layers.*.attention.dense H H
        ~layers.*.mlp.dense_h_to_4h I H
        ~layers.*.mlp.dense_4h_to_h H I
        ~final_layer_norm H
        """,
    ),
    "llama": Family("llama", _LLAMA_KEYS, _LLAMA),
    "mistral": Family("mistral", _LLAMA_KEYS | {"rope_theta": 10000.0}, _LLAMA),
    "qwen2": Family(
        "qwen2",
        _LLAMA_KEYS | dict(attention_dropout=0.0, max_window_layers=21, rms_norm_eps=1e-6,
                           rope_theta=1000000.0, sliding_window=32768, use_sliding_window=False),
        _QWEN2,
    ),
    "qwen3": Family(
        "qwen3",
        _LLAMA_KEYS | dict(attention_bias=False, attention_dropout=0.0, head_dim=128,
                           max_window_layers=28, rms_norm_eps=1e-6, rope_scaling=None,
                           rope_theta=1000000, sliding_window=None, use_sliding_window=False),
        _LLAMA + _QK_NORM,
    ),
    "gemma2": Family(
        "gemma2",
        _LLAMA_KEYS | dict(attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
                           cache_implementation="hybrid", final_logit_softcapping=30.0,
                           head_dim=256, hidden_act="gelu_pytorch_tanh",
                           hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
                           rope_theta=10000.0, sliding_window=4096, pad_token_id=0),
        _GEMMA,
    ),
    "gemma3_text": Family(
        "gemma3_text",
        _LLAMA_KEYS | dict(attention_bias=False, attention_dropout=0.0, head_dim=256,
                           attn_logit_softcapping=None, final_logit_softcapping=None,
                           hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
                           rope_local_base_freq=10000, rope_theta=1000000, sliding_window=512,
                           pad_token_id=0),
        _GEMMA + _QK_NORM,
    ),
    "t5": Family("t5", _T5_KEYS, _T5),
    "t5_gated": Family(
        "t5", _T5_KEYS | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                              num_decoder_layers=6, use_cache=True), _GATED,
    ),
    "t5_encoder": Family("t5", _T5_KEYS | {"num_decoder_layers": 6},
                         "~shared.weight V H\n" + _T5_ENCODER),
    "mt5": Family(
        "mt5", _T5_KEYS | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                               num_decoder_layers=8, tokenizer_class="T5Tokenizer"), _GATED,
    ),
    "bart": Family(
        "bart",
        dict(activation_dropout=0.0, activation_function="gelu", attention_dropout=0.0,
             bos_token_id=0, classifier_dropout=0.0, d_model=1024, decoder_attention_heads=16,
             decoder_ffn_dim=4096, decoder_layerdrop=0.0, decoder_layers=12,
             decoder_start_token_id=2, dropout=0.1, encoder_attention_heads=16,
             encoder_ffn_dim=4096, encoder_layerdrop=0.0, encoder_layers=12, eos_token_id=2,
             init_std=0.02, is_encoder_decoder=True, max_position_embeddings=1024,
             num_hidden_layers=12, pad_token_id=1, vocab_size=50265, add_final_layer_norm=False,
             classif_dropout=0.0, gradient_checkpointing=False, normalize_before=False,
             scale_embedding=False),
        _BART,
    ),
}  # fmt: skip


def tensors(lines: str, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of lines as `Family` has them."""
    shapes = {}
    for line in filter(None, map(str.strip, lines.split("\n"))):
        name, *letters = line.split()
        shape = tuple(DIMS[letter] for letter in letters if letter != "X")
        names = [name.replace("~", prefix)]
        while any("(" in n for n in names):
            names = [
                n.replace(choice[0], part, 1)
                for n in names
                for choice in [re.search(r"\(([^()]*)\)", n)]
                for part in choice[1].split("|")
            ]
        for each in names:
            for layer in range(LAYERS if "*" in each else 1):
                full = each.replace("*", str(layer))
                if re.search(r"\.(weight|bias|gamma|beta)$|_ids$|_bias$|freq$|version$", full):
                    shapes[full] = shape
                else:
                    shapes |= {f"{full}.weight": shape, f"{full}.bias": shape[:1]}
    return shapes


def write(directory, family: str, architecture: str, keys: dict, shapes: dict, copies: dict):
    """Write config.json and model.safetensors of a reduced size, random from a fixed seed.

    `copies` are {name: name of the tensor that it equals}.
    """
    config = {"model_type": FAMILIES[family].model_type} | FAMILIES[family].keys | keys
    if architecture:
        config["architectures"] = [architecture]
    config = {k: SIZES[k] if k in SIZES and v is not None else v for k, v in config.items()}
    if config["model_type"] in ("roberta", "xlm-roberta"):
        config["max_position_embeddings"] = DIMS["R"]
    if config["model_type"] == "bart":
        config["vocab_size"] = DIMS["V"]
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:LAYERS]
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    arrays = {
        name: np.zeros(shape, np.int64) if name.endswith("_ids")
        else np.zeros(shape, np.float32) if name.endswith("logits_bias")
        else rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip
    arrays |= {name: arrays[other].copy() for name, other in copies.items() if other in arrays}
    safetensors.numpy.save_file(arrays, directory / "model.safetensors", {"format": "pt"})
