"""Tiny random models of `transformers`, one an architecture: the oracle of the interop tests."""

import dataclasses

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # tiny models: a second thread waits more than it works

B, L, M = 3, 17, 13  # longer than the windows of 4 and 5 below
V = 99
STD = 0.2  # at the usual 0.02 a wrong activation or soft cap hides below the tolerance
LENGTHS, ENCODER_LENGTHS = (17, 11, 5), (9, 13, 4)

_BERT = dict(
    vocab_size=V, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=24, num_labels=3,
)  # fmt: skip
_DECODER = _BERT | dict(num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0)
_ENCODER_HEADS = {
    "base": "Model", "mlm": "ForMaskedLM", "classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification", "question_answering": "ForQuestionAnswering",
}  # fmt: skip
_DECODER_HEADS = {
    "base": "Model", "lm": "ForCausalLM", "classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification", "question_answering": "ForQuestionAnswering",
}  # fmt: skip
_BERT_FLIPS = dict(
    hidden_act="relu", layer_norm_eps=0.1, num_attention_heads=8,
)  # fmt: skip
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
_DECODER_FLIPS = dict(
    hidden_act="gelu", rms_norm_eps=0.1,
    rope_parameters={"rope_theta": 10.0, "rope_type": "default"},
)  # fmt: skip
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


@dataclasses.dataclass(frozen=True)
class Case:
    """An architecture: how its tiny config is made, its classes by head, and what to flip.

    `flips` are other values of config fields, under which the same weights must give other
    numbers, still equal to those of `transformers`.
    """

    config: str
    fields: dict
    classes: dict[str, str]
    one: str  # the head of the short test run
    flips: dict
    decoder: bool = False
    both: bool = False  # encoder-decoder


def _of(begin: str, heads: dict[str, str], **renamed: str) -> dict[str, str]:
    return {head: begin + end for head, end in heads.items()} | renamed


_T5 = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
           vocab_size=V, relative_attention_num_buckets=8, relative_attention_max_distance=12,
           num_labels=3)  # fmt: skip
_T5_FLIPS = dict(
    layer_norm_epsilon=0.5, relative_attention_max_distance=20, feed_forward_proj="gated-silu"
)
_T5_HEADS = {
    "base": "Model", "encoder": "EncoderModel", "lm": "ForConditionalGeneration",
    "classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification", "question_answering": "ForQuestionAnswering",
}  # fmt: skip

CASES = {
    "bert": Case(
        "BertConfig", _BERT, _of("Bert", _ENCODER_HEADS, pretraining="BertForPreTraining"),
        "pretraining", _BERT_FLIPS,
    ),
    "roberta": Case(
        "RobertaConfig", _BERT | dict(type_vocab_size=1, pad_token_id=1),
        _of("Roberta", _ENCODER_HEADS), "classification", _BERT_FLIPS,
    ),
    "xlm_roberta": Case(
        "XLMRobertaConfig", _BERT | dict(type_vocab_size=1, pad_token_id=1),
        _of("XLMRoberta", _ENCODER_HEADS), "mlm", {},
    ),
    "distilbert": Case(
        "DistilBertConfig",
        dict(vocab_size=V, dim=32, n_layers=3, n_heads=4, hidden_dim=48, num_labels=3,
             max_position_embeddings=24),
        _of("DistilBert", _ENCODER_HEADS), "classification", dict(activation="relu", n_heads=8),
    ),
    "electra": Case(
        "ElectraConfig", _BERT | dict(embedding_size=16),
        _of("Electra", _ENCODER_HEADS, discriminator="ElectraForPreTraining"),
        "discriminator", _BERT_FLIPS,
    ),
    "albert": Case(
        "AlbertConfig", _BERT | dict(embedding_size=16),
        _of("Albert", _ENCODER_HEADS, pretraining="AlbertForPreTraining"),
        "pretraining", _BERT_FLIPS | dict(num_hidden_layers=2),
    ),
    "modernbert": Case(
        "ModernBertConfig",
        {k: v for k, v in _BERT.items()} | dict(
            local_attention=8, layer_types=["full_attention", "sliding_attention",
            "sliding_attention"], pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
            sep_token_id=2, attention_bias=True, mlp_bias=True, classifier_bias=True),
        _of("ModernBert", _ENCODER_HEADS), "mlm",
        dict(hidden_activation="relu", norm_eps=0.1, local_attention=4,
             classifier_activation="relu",
             layer_types=["full_attention", "sliding_attention", "full_attention"],
             rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE}),
    ),
    "gpt2": Case(
        "GPT2Config",
        dict(vocab_size=V, n_embd=32, n_layer=3, n_head=4, n_positions=24, num_labels=3,
             bos_token_id=1, eos_token_id=2, pad_token_id=0),
        _of("GPT2", _DECODER_HEADS, lm="GPT2LMHeadModel"), "lm",
        dict(activation_function="relu", layer_norm_epsilon=0.1, n_head=8,
             scale_attn_weights=False),
        decoder=True,
    ),
    "gpt_neox": Case(
        "GPTNeoXConfig",
        {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}
        | dict(rope_parameters=_ROPE | {"partial_rotary_factor": 0.5}),
        _of("GPTNeoX", _DECODER_HEADS), "lm",
        dict(hidden_act="relu", layer_norm_eps=0.1, use_parallel_residual=False,
             rope_parameters=_ROPE | {"partial_rotary_factor": 0.25}),
        decoder=True,
    ),
    "llama": Case(
        "LlamaConfig", _DECODER | dict(attention_bias=True, mlp_bias=True),
        _of("Llama", _DECODER_HEADS), "lm",
        _DECODER_FLIPS | {"rope_parameters:llama3": _LLAMA3, "rope_parameters:linear":
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, decoder=True,
    ),
    "mistral": Case(
        "MistralConfig", _DECODER | dict(sliding_window=4, head_dim=6),
        _of("Mistral", _DECODER_HEADS), "lm", dict(sliding_window=5), decoder=True,
    ),
    "qwen2": Case(
        "Qwen2Config",
        _DECODER | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1),
        _of("Qwen2", _DECODER_HEADS), "lm", dict(sliding_window=5), decoder=True,
    ),
    "qwen3": Case(
        "Qwen3Config", _DECODER | dict(head_dim=10), _of("Qwen3", _DECODER_HEADS), "lm",
        _DECODER_FLIPS, decoder=True,
    ),
    "gemma2": Case(
        "Gemma2Config",
        _DECODER | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=16,
                        attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        {h: c for h, c in _of("Gemma2", _DECODER_HEADS).items() if h != "question_answering"},
        "lm",
        dict(hidden_activation="silu", rms_norm_eps=0.1, sliding_window=5,
             query_pre_attn_scalar=4, attn_logit_softcapping=4.0, final_logit_softcapping=2.0,
             layer_types=_TYPES[1:] + _TYPES[1:2]),
        decoder=True,
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        _DECODER | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=16, layer_types=_TYPES),
        {"base": "Gemma3TextModel", "lm": "Gemma3ForCausalLM",
         "classification": "Gemma3TextForSequenceClassification"},
        "lm",
        dict(sliding_window=5, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e3},
            "sliding_attention": _ROPE}),
        decoder=True,
    ),
    "t5": Case("T5Config", _T5, _of("T5", _T5_HEADS), "lm", {
        k: v for k, v in _T5_FLIPS.items() if k != "feed_forward_proj"}
        | {"feed_forward_proj": "gelu_new", "scale_decoder_outputs": False,
           "dense_act_fn": "silu"}, both=True),
    "t5_v1_1": Case(
        "T5Config", _T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        _of("T5", _T5_HEADS), "lm", _T5_FLIPS, both=True,
    ),
    "mt5": Case(
        "MT5Config", _T5 | dict(feed_forward_proj="gated-gelu"), _of("MT5", _T5_HEADS),
        "lm", {}, both=True,
    ),
    # ByT5 is mT5's config under T5's classes, with bytes for its vocabulary.
    "byt5": Case(
        "T5Config", _T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False,
                               num_layers=3, num_decoder_layers=1, vocab_size=384),
        _of("T5", _T5_HEADS), "lm", {}, both=True,
    ),
    "bart": Case(
        "BartConfig",
        dict(vocab_size=V, d_model=32, encoder_layers=2, decoder_layers=3,
             encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
             decoder_ffn_dim=48, max_position_embeddings=24, num_labels=3),
        _of("Bart", {"base": "Model", "lm": "ForConditionalGeneration", **{
            k: v for k, v in _ENCODER_HEADS.items()
            if k in ("classification", "question_answering")}}),
        "lm", dict(activation_function="relu", scale_embedding=True),
        both=True,
    ),
}  # fmt: skip


def torch_model(case: Case, head: str, seed: int = 0, **changes):
    """Return a model in evaluation mode with every parameter random, norm scales around 1."""
    # Weights are drawn below: what the library draws itself is waste.
    fields = case.fields | changes
    if case.both:
        fields = {"decoder_start_token_id": 2 if "Bart" in case.config else 0} | fields
    config = getattr(transformers, case.config)(**fields)
    if head in ("question_answering", "pretraining"):
        config.num_labels = 2
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, case.classes[head])(config).eval()
    untie(model, case)
    randomise(model, seed)
    return model


def untie(model, case: Case) -> None:
    """Give T5 v1.1 the output table of its own that its released checkpoints have."""
    own = case.fields.get("tie_word_embeddings") is False
    if own and hasattr(model, "lm_head") and model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(model.shared.weight.clone())
        model.all_tied_weights_keys.pop("lm_head.weight", None)


def randomise(model, seed: int) -> None:
    """Draw every parameter with standard deviation 0.2; scales of norms stand around 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 0.0
            scale = name.rpartition(".")[2] == "weight" and parameter.ndim == 1
            if scale and "gemma" not in type(model).__name__.lower():
                offset = 1.0
            parameter.copy_(offset + STD * torch.randn(parameter.shape, generator=draw))


def batch(case: Case, head: str, seed: int = 0, left: bool = False) -> dict[str, np.ndarray]:
    """Return ours: unequal lengths, padded on the right or, for a decoder, on the left."""
    rng = np.random.default_rng(seed)
    vocab = case.fields["vocab_size"]
    pad = case.fields.get("pad_token_id", 1 if "Bart" in case.config else 0)

    def rows(width, lengths, prefix=""):
        real = np.arange(width)[None] < np.array(lengths)[:, None]
        real = real[:, ::-1] if left else real
        # 0, 1 and 2 are special in some: padding (whose embedding torch gives no gradient) or EOS.
        tokens = np.where(real, rng.integers(3, vocab, real.shape), pad)
        return {f"{prefix}tokens": tokens.astype(np.int32),
                f"{prefix}segment_ids": real.astype(np.int32)}  # fmt: skip

    if case.both and head in ("classification", "question_answering"):
        # These classes take one row, which the decoder reads shifted by one.
        made = rows(L, LENGTHS, "encoder_")
        ids, real = made["encoder_tokens"], made["encoder_segment_ids"]
        eos, start = (2, 2) if "Bart" in case.config else (1, 0)
        ids[np.arange(B), real.sum(1) - 1] = eos
        shifted = np.concatenate([np.full((B, 1), start, np.int32), ids[:, :-1]], axis=1)
        return made | {"tokens": shifted, "segment_ids": real}
    if case.both and head not in ("encoder", "token_classification"):
        return rows(M, ENCODER_LENGTHS, "encoder_") | rows(L, LENGTHS)
    made = rows(L, LENGTHS)
    if not case.decoder and not case.both and case.fields.get("type_vocab_size", 2) > 1:
        made["token_types"] = rng.integers(0, 2, (B, L)).astype(np.int32) * made["segment_ids"]
    return made


def torch_outputs(model, case: Case, head: str, ours: dict[str, np.ndarray]) -> dict:
    """Return {our head or hidden: tensor} of a model of `transformers` on our batch."""
    named = {"input_ids": "tokens", "attention_mask": "segment_ids"}
    if "encoder_tokens" in ours:
        named = {"input_ids": "encoder_tokens", "attention_mask": "encoder_segment_ids"}
        if head not in ("classification", "question_answering"):
            named |= {"decoder_input_ids": "tokens", "decoder_attention_mask": "segment_ids"}
    given = {theirs: torch.from_numpy(ours[name]).long() for theirs, name in named.items()}
    if "token_types" in ours and not isinstance(
        model, transformers.DistilBertPreTrainedModel | transformers.ModernBertPreTrainedModel
    ):
        given["token_type_ids"] = torch.from_numpy(ours["token_types"]).long()
    if case.decoder:
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    out = model(**given)
    if head in ("base", "encoder"):
        found = {"hidden": out.last_hidden_state}
        if getattr(out, "pooler_output", None) is not None:
            found["pooled"] = out.pooler_output
        return found
    if head == "pretraining":
        nsp = out["sop_logits"] if "sop_logits" in out else out["seq_relationship_logits"]
        return {"mlm": out.prediction_logits, "nsp": nsp}
    if head == "question_answering":
        return {head: torch.stack([out.start_logits, out.end_logits], -1)}
    return {head: out.logits}
