"""Keys of `config.json` that change nothing in what a model computes, by who wrote them.

Families add a few of their own (`Family.unused`, `Family.fixed`).
"""

# Options of text generation, which are read where there is no generation_config.json.
GENERATION = frozenset(
    """
    decoder_start_token_id forced_bos_token_id forced_eos_token_id forced_decoder_ids
    force_bos_token_to_be_generated max_length min_length max_new_tokens min_new_tokens do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    min_p epsilon_cutoff eta_cutoff penalty_alpha repetition_penalty encoder_repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    force_words_ids num_return_sequences output_scores return_dict_in_generate
    remove_invalid_values renormalize_logits exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens cache_implementation
    """.split()
)
# Harmless whatever they say.
ANY = GENERATION | frozenset(
    # Where the model comes from, and how a program runs it.
    """
    _name_or_path name_or_path _commit_hash architectures model_type transformers_version
    torch_dtype dtype use_bfloat16 torchscript tf_legacy_loss return_dict use_return_dict
    output_attentions output_hidden_states output_past use_cache gradient_checkpointing
    chunk_size_feed_forward xla_device model_parallel trust_remote_code is_encoder_decoder
    keys_to_ignore_at_inference base_model_tp_plan base_model_pp_plan is_llama_config
    _attn_implementation_autoset _attn_implementation attn_implementation _flash_attn_2_enabled
    _experts_implementation transformers.js_config
    """.split()
    # Names of classes and of the task, and heads' dropout and pooling of the first releases.
    + """
    id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params
    tie_weights_ predict_special_tokens directionality pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type classif_dropout classifier_dropout
    summary_type summary_use_proj summary_activation summary_first_dropout summary_last_dropout
    summary_proj_to_labels
    """.split()
    # The tokenizer's.
    + """
    tokenizer_class prefix pad_token_id bos_token_id eos_token_id eos_token_ids sep_token_id
    cls_token_id mask_token_id unk_token_id max_sequence_length max_seq_length model_max_length
    seq_length n_ctx
    """.split()
    # What training and distillation scripts, and libraries around this one, leave behind.
    + """
    language name replacing_rate save_step student_encoder_layers student_decoder_layers
    neftune_noise_alpha sbert_ce_default_activation_function sentence_transformers author
    custom_pipeline custom_pipelines
    """.split()
)
PREFIXES = ("unsloth_", "_unsloth_")

# Harmless at these values alone (as null always is).
ONLY: dict[str, tuple] = {
    "pruned_heads": ({},),
    "layers_to_keep": ([],),
    "do_blenderbot_90_layernorm": (False,),
    "n_special": (0,),  # rows of special tokens behind the vocabulary
    "tie_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_bidirectional_attention": (False,),
    "qk_layernorm": (False,),
    "qk_layer_norms": (False,),
    "quantization_config": (),
    "cross_attention_hidden_size": (),
}


def not_understood(unread: dict) -> list[str]:
    """Return `key=value` of what may change the computation, with the values that do not."""
    lines = []
    for name, value in unread.items():
        # A dropout that a family does not have is none at 0.
        dropout = name.endswith(("dropout", "dropout_prob", "pdrop", "layerdrop")) and value == 0
        harmless = value is None or name in ANY or name.startswith(PREFIXES) or dropout
        if not harmless and value not in (valid := ONLY.get(name, ())):
            only = f" (only {' or '.join(map(repr, valid))} is)" if valid else ""
            lines.append(f"{name}={value!r}"[:80] + only)
    return lines
