"""The checkpoints of the hub that are tried, by model: facts, see hub_checkpoints.py for which.

A row says the class that config.json names, the keys that it has besides its family's, the tensors
beside the backbone's, and which of them nothing reads. Classes are named as they are there, three
of them at most. The keys of 46 rows of 88 were compared with a copy of that checkpoint's file, or
with what the library printed of it; the other rows, and all tensors, are from memory.
"""

from typing import NamedTuple


class Hub(NamedTuple):
    """One checkpoint: its family, class ('' for none), prefix, keys, and tensors.

    `read` and `unread` are the tensors beside the backbone, by whether anything takes a parameter
    from them; `heads` are those that are found, and `sub` renames: (regex, replacement).
    """

    family: str
    architecture: str
    prefix: str
    heads: str
    read: str = ""
    unread: str = ""
    keys: dict = {}  # noqa: RUF012
    sub: tuple = ()


def labels(*names):
    """Return the keys of a classifier with these classes."""
    ids = {n: i for i, n in enumerate(names)}
    return {"id2label": {str(i): n for n, i in ids.items()}, "label2id": ids}


# fmt: off
POOLER = "~pooler.dense H H\n"
IDS = "~embeddings.position_ids one P\n"
MLM = """
cls.predictions.bias V
cls.predictions.transform.dense H H
cls.predictions.transform.LayerNorm H
"""
OUTPUT = "cls.predictions.decoder.weight V H\n"
DECODER = "cls.predictions.decoder V H\n"
NSP = "cls.seq_relationship two H\n"
CLASSES = "classifier N H\n"
SPANS = "qa_outputs two H\n"
ROBERTA_IDS = "~embeddings.position_ids one R\n"
ROBERTA_LM = "lm_head.bias V\nlm_head.dense H H\nlm_head.layer_norm H\n"
DENSE = "classifier.dense H H\nclassifier.out_proj N H\n"
DISTIL_LM = "vocab_transform H H\nvocab_layer_norm H\nvocab_projector.bias V\n"
MASK = "~h.*.attn.bias one one P P\n"
LM = "lm_head.weight V H\n"
ROPE = "~layers.*.self_attn.rotary_emb.inv_freq D\n"
EMBED = "~encoder.embed_tokens.weight V H\n~decoder.embed_tokens.weight V H\n"
BITS = "final_logits_bias one V\n"
OLD_T5 = "~decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight B two\n"
EMBED_OUT = "embed_out.weight V H\n"
NEOX = """
~layers.*.attention.bias one one P P
~layers.*.attention.masked_bias X
~layers.*.attention.rotary_emb.inv_freq D
"""

V2 = dict(directionality="bidi", pooler_fc_size=768, pooler_num_fc_layers=3,
          pooler_num_attention_heads=12, pooler_size_per_head=128,
          pooler_type="first_token_transform")
V4 = dict(gradient_checkpointing=False, position_embedding_type="absolute", use_cache=True,
          transformers_version="4.6.0.dev0")
XLM = dict(classifier_dropout=None, output_past=True, position_embedding_type="absolute",
           use_cache=True)
LLAMA3 = dict(bos_token_id=128000, eos_token_id=[128001, 128008, 128009], attention_bias=False,
              attention_dropout=0.0, mlp_bias=False, pretraining_tp=1, rope_theta=500000.0,
              rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
                                original_max_position_embeddings=8192, rope_type="llama3"))
ONE, THREE = labels("LABEL_0"), labels("LABEL_0", "LABEL_1", "LABEL_2")
BART3 = THREE | dict(early_stopping=True, num_beams=4, no_repeat_ngram_size=3,
                     forced_bos_token_id=0, forced_eos_token_id=2,
                     task_specific_params={"summarization": {"length_penalty": 1.0}})
BART_CNN = BART3 | dict(_num_labels=3, output_past=True, prefix=" ", max_length=142, min_length=56,
                        force_bos_token_to_be_generated=True, length_penalty=2.0)
TEXT = {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}


GAMMA = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))
HUB = {
    # BERT
    "google-bert/bert-base-uncased": Hub("bert", "BertForMaskedLM", "bert.", "mlm", MLM,
        POOLER + NSP, V4, GAMMA),
    "google-bert/bert-base-cased": Hub("bert", "BertForMaskedLM", "bert.", "mlm", MLM,
        POOLER + NSP + OUTPUT, V4, GAMMA),
    "google-bert/bert-base-multilingual-cased": Hub("bert", "BertForMaskedLM", "bert.", "mlm", MLM,
        POOLER + NSP, V2, GAMMA),
    "google-bert/bert-base-chinese": Hub("bert", "BertForMaskedLM", "bert.", "mlm", MLM,
        POOLER + NSP, V2, GAMMA),
    "google-bert/bert-large-uncased-whole-word-masking-finetuned-squad": Hub("bert",
        "BertForQuestionAnswering", "bert.", "question_answering", SPANS, POOLER),
    "dbmdz/bert-large-cased-finetuned-conll03-english": Hub("bert", "BertForTokenClassification",
        "bert.", "token_classification", CLASSES, POOLER + IDS, V2 | THREE | {"_num_labels": 9}),
    "dslim/bert-base-NER": Hub("bert", "BertForTokenClassification", "bert.",
        "token_classification", CLASSES, POOLER, THREE | dict(_num_labels=9, output_past=True,
        max_length=512)),
    "nlptown/bert-base-multilingual-uncased-sentiment": Hub("bert",
        "BertForSequenceClassification", "bert.", "classification", POOLER + CLASSES, IDS,
        V2 | THREE | dict(_num_labels=5, finetuning_task="sentiment-analysis", output_past=True)),
    "ProsusAI/finbert": Hub("bert", "BertForSequenceClassification", "bert.", "classification",
        POOLER + CLASSES, IDS, V4 | labels("positive", "negative", "neutral")),
    "unitary/toxic-bert": Hub("bert", "BertForSequenceClassification", "bert.", "classification",
        POOLER + CLASSES, IDS, V4 | THREE | {"problem_type": "multi_label_classification"}),
    "textattack/bert-base-uncased-SST-2": Hub("bert", "BertForSequenceClassification", "bert.",
        "classification", POOLER + "classifier two H\n", "", {"finetuning_task": "glue:sst-2",
        "output_past": True, "xla_device": None}),
    "emilyalsentzer/Bio_ClinicalBERT": Hub("bert", "", "bert.", "mlm nsp", MLM + POOLER + NSP,
        OUTPUT),
    "allenai/scibert_scivocab_uncased": Hub("bert", "", "bert.", "mlm nsp", MLM + POOLER + NSP, ""),
    "prajjwal1/bert-tiny": Hub("bert", "", "bert.", "mlm nsp", MLM + POOLER + NSP, IDS + DECODER),
    "microsoft/MiniLM-L12-H384-uncased": Hub("bert", "", "bert.", "pooled", POOLER),
    "hfl/chinese-roberta-wwm-ext": Hub("bert", "BertForMaskedLM", "bert.", "mlm", MLM,
        POOLER + NSP, V2 | {"bos_token_id": 0, "eos_token_id": 2, "output_past": True}),
    "sentence-transformers/all-MiniLM-L6-v2": Hub("bert", "BertModel", "", "pooled", POOLER, IDS,
        V4 | {"_name_or_path": "nreimers/MiniLM-L6-H384-uncased"}),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Hub("bert", "BertModel", "",
        "pooled", POOLER, IDS, V4),
    "BAAI/bge-small-en-v1.5": Hub("bert", "BertModel", "", "pooled", POOLER, IDS,
        V4 | ONE | {"classifier_dropout": None}),
    "BAAI/bge-base-zh-v1.5": Hub("bert", "BertModel", "", "pooled", POOLER, IDS,
        V2 | ONE | {"output_past": True}),
    "intfloat/e5-base-v2": Hub("bert", "BertModel", "", "pooled", POOLER, IDS,
        V4 | {"_name_or_path": "tmp/", "classifier_dropout": None}),
    "intfloat/multilingual-e5-small": Hub("bert", "BertModel", "", "pooled", POOLER, IDS,
        V4 | {"tokenizer_class": "XLMRobertaTokenizer"}),
    "thenlper/gte-base": Hub("bert", "BertModel", "", "pooled", POOLER, IDS, V4),
    "mixedbread-ai/mxbai-embed-large-v1": Hub("bert", "BertModel", "", "pooled", POOLER, "",
        V4 | {"use_cache": False, "transformers.js_config": {"dtype": "fp32"}}),
    "Snowflake/snowflake-arctic-embed-xs": Hub("bert", "BertModel", "", "pooled", POOLER, "", V4),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Hub("bert", "BertForSequenceClassification", "bert.",
        "classification", POOLER + "classifier one H\n", IDS, ONE | V4 | {
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}),
    # RoBERTa and XLM-R
    "FacebookAI/roberta-base": Hub("roberta", "RobertaForMaskedLM", "roberta.", "mlm", ROBERTA_LM,
        POOLER + ROBERTA_IDS),
    "FacebookAI/roberta-large-mnli": Hub("roberta", "RobertaForSequenceClassification", "roberta.",
        "classification", DENSE, POOLER, labels("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
        | {"_num_labels": 3}),
    "distilbert/distilroberta-base": Hub("roberta", "RobertaForMaskedLM", "roberta.", "mlm",
        ROBERTA_LM, "lm_head.decoder V H\n"),
    "deepset/roberta-base-squad2": Hub("roberta", "RobertaForQuestionAnswering", "roberta.",
        "question_answering", SPANS, POOLER + ROBERTA_IDS, {"gradient_checkpointing": False,
        "language": "english", "name": "Roberta"}),
    "cardiffnlp/twitter-roberta-base-sentiment-latest": Hub("roberta",
        "RobertaForSequenceClassification", "roberta.", "classification", DENSE,
        POOLER + ROBERTA_IDS, V4 | labels("negative", "neutral", "positive")),
    "SamLowe/roberta-base-go_emotions": Hub("roberta", "RobertaForSequenceClassification",
        "roberta.", "classification", DENSE, "", V4 | THREE | {"torch_dtype": "float32",
        "problem_type": "multi_label_classification"}),
    "j-hartmann/emotion-english-distilroberta-base": Hub("roberta",
        "RobertaForSequenceClassification", "roberta.", "classification", DENSE, ROBERTA_IDS,
        V4 | THREE | {"problem_type": "single_label_classification"}),
    "microsoft/codebert-base": Hub("roberta", "RobertaModel", "", "pooled", POOLER, "",
        {"output_past": True}),
    "openai-community/roberta-base-openai-detector": Hub("roberta",
        "RobertaForSequenceClassification", "roberta.", "classification",
        DENSE.replace("N H", "two H"), POOLER, {"output_past": True}),
    "FacebookAI/xlm-roberta-base": Hub("xlm-roberta", "XLMRobertaForMaskedLM", "roberta.", "mlm",
        ROBERTA_LM, POOLER + "lm_head.decoder.weight V H\n", XLM),
    "intfloat/multilingual-e5-large": Hub("xlm-roberta", "XLMRobertaModel", "", "pooled", POOLER,
        ROBERTA_IDS, XLM),
    "BAAI/bge-m3": Hub("xlm-roberta", "XLMRobertaModel", "", "pooled", POOLER, ROBERTA_IDS, XLM),
    "BAAI/bge-reranker-base": Hub("xlm-roberta", "XLMRobertaForSequenceClassification", "roberta.",
        "classification", DENSE.replace("N H", "one H"), ROBERTA_IDS,
        XLM | ONE),
    "deepset/xlm-roberta-large-squad2": Hub("xlm-roberta", "XLMRobertaForQuestionAnswering",
        "roberta.", "question_answering", SPANS, POOLER + ROBERTA_IDS, {"language": "english",
        "name": "XLMRoberta", "output_past": True}),
    # DistilBERT, ELECTRA, ALBERT
    "distilbert/distilbert-base-uncased": Hub("distilbert", "DistilBertForMaskedLM", "distilbert.",
        "mlm", DISTIL_LM, "", {"transformers_version": "4.10.0.dev0"}),
    "distilbert/distilbert-base-multilingual-cased": Hub("distilbert", "DistilBertForMaskedLM",
        "distilbert.", "mlm", DISTIL_LM, "vocab_projector.weight V H\n", {"output_past": True}),
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": Hub("distilbert",
        "DistilBertForSequenceClassification", "distilbert.", "classification",
        "pre_classifier H H\nclassifier two H\n", "", labels("NEGATIVE", "POSITIVE")
        | {"finetuning_task": "sst-2", "output_past": True}),
    "distilbert/distilbert-base-cased-distilled-squad": Hub("distilbert",
        "DistilBertForQuestionAnswering", "distilbert.", "question_answering", SPANS, "",
        {"output_past": True}),
    "google/electra-small-discriminator": Hub("electra", "ElectraForPreTraining", "electra.",
        "discriminator", "discriminator_predictions.dense H H\n"
        "discriminator_predictions.dense_prediction one H\n", IDS, {"summary_type": "first",
        "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_use_proj": True}),
    "google/electra-base-generator": Hub("electra", "ElectraForMaskedLM", "electra.", "mlm",
        "generator_predictions.dense E H\ngenerator_predictions.LayerNorm E\n"
        "generator_lm_head.bias V\n", "generator_lm_head.weight V E\n" + IDS),
    "Maltehb/-l-ctra-danish-electra-small-cased": Hub("electra", "ElectraForPreTraining",
        "electra.", "discriminator", "discriminator_predictions.dense H H\n"
        "discriminator_predictions.dense_prediction one H\n", IDS, {"generator_size": "0.25",
        "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first",
        "summary_use_proj": True}),
    "albert/albert-base-v2": Hub("albert", "AlbertForMaskedLM", "albert.", "mlm",
        "predictions.bias V\npredictions.dense E H\npredictions.LayerNorm E\n",
        "~pooler H H\npredictions.decoder V E\n"),
    "voidful/albert_chinese_base": Hub("albert", "AlbertForMaskedLM", "albert.", "mlm",
        "predictions.bias V\npredictions.dense E H\npredictions.LayerNorm E\n",
        "~pooler H H\npredictions.decoder V E\n", {"hidden_act": "relu", "layers_to_keep": []}),
    # GPT-2, GPT-NeoX
    "openai-community/gpt2": Hub("gpt2", "GPT2LMHeadModel", "", "lm", "", MASK,
        TEXT),
    "openai-community/gpt2-medium": Hub("gpt2", "GPT2LMHeadModel", "", "lm", "", MASK,
        TEXT | {"n_special": 0, "predict_special_tokens": True}),
    "openai-community/gpt2-xl": Hub("gpt2", "GPT2LMHeadModel", "", "lm", "", MASK,
        TEXT | {"output_past": True}),
    "distilbert/distilgpt2": Hub("gpt2", "GPT2LMHeadModel", "transformer.", "lm", LM,
        MASK, ONE | TEXT | {"_num_labels": 1, "gradient_checkpointing": False},
        ((r"^transformer\.wte\.weight$", ""),)),
    "microsoft/DialoGPT-medium": Hub("gpt2", "GPT2LMHeadModel", "transformer.", "lm", "",
        LM + MASK + "~h.*.attn.masked_bias X\n", {"task_specific_params": {"conversational": {}}}),
    "EleutherAI/pythia-70m": Hub("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", "lm",
        EMBED_OUT, NEOX,
        {"use_parallel_residual": True}),
    "h2oai/h2ogpt-oig-oasst1-512-6_9b": Hub("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", "lm",
        EMBED_OUT, NEOX, {"custom_pipeline": {"text-generation": {}},
        "use_parallel_residual": True}),
    "EleutherAI/gpt-neox-20b": Hub("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", "lm",
        EMBED_OUT, NEOX,
        dict(attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.1, hidden_act="gelu_fast")),
    # Llama, Mistral, Qwen, Gemma
    "meta-llama/Llama-2-7b-chat-hf": Hub("llama", "LlamaForCausalLM", "model.", "lm", LM, ROPE,
        {"pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False}),
    "lmsys/vicuna-7b-v1.3": Hub("llama", "LlamaForCausalLM", "model.", "lm", LM, ROPE,
        {"max_sequence_length": 2048, "pad_token_id": 0, "tie_word_embeddings": False}),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Hub("llama", "LlamaForCausalLM", "model.", "lm", LM, "",
        dict(attention_bias=False, pretraining_tp=1, rope_scaling=None, rope_theta=10000.0,
             tie_word_embeddings=False)),
    "meta-llama/Llama-3.2-1B-Instruct": Hub("llama", "LlamaForCausalLM", "model.", "lm", "", "",
        LLAMA3 | {"head_dim": 64, "tie_word_embeddings": True}),
    "meta-llama/Llama-3.1-8B-Instruct": Hub("llama", "LlamaForCausalLM", "model.", "lm", LM, "",
        LLAMA3 | {"tie_word_embeddings": False}),
    "unsloth/Llama-3.2-1B-Instruct": Hub("llama", "LlamaForCausalLM", "model.", "lm", "", "",
        LLAMA3 | dict(head_dim=64, pad_token_id=128004, tie_word_embeddings=True,
                      unsloth_fixed=True)),
    "HuggingFaceTB/SmolLM2-135M": Hub("llama", "LlamaForCausalLM", "model.", "lm", "", "",
        {"attention_bias": False, "attention_dropout": 0.0, "is_llama_config": True,
         "pretraining_tp": 1, "rope_interleaved": False, "rope_scaling": None,
         "rope_theta": 100000, "tie_word_embeddings": True}),
    "mistralai/Mistral-7B-v0.1": Hub("mistral", "MistralForCausalLM", "model.", "lm", LM, "",
        {"sliding_window": 4096, "tie_word_embeddings": False}),
    "mistralai/Mistral-7B-Instruct-v0.3": Hub("mistral", "MistralForCausalLM", "model.", "lm", LM,
        "", {"sliding_window": None, "attention_dropout": 0.0, "tie_word_embeddings": False}),
    "intfloat/e5-mistral-7b-instruct": Hub("mistral", "MistralModel", "", "", "", "",
        {"sliding_window": 4096, "tie_word_embeddings": False}),
    "Qwen/Qwen2.5-0.5B-Instruct": Hub("qwen2", "Qwen2ForCausalLM", "model.", "lm", "", "",
        {"tie_word_embeddings": True}),
    "Qwen/Qwen2.5-0.5B": Hub("qwen2", "Qwen2ForCausalLM", "model.", "lm", "", "",
        {"tie_word_embeddings": True, "use_mrope": False}),
    "Qwen/Qwen2.5-7B-Instruct": Hub("qwen2", "Qwen2ForCausalLM", "model.", "lm", LM, "",
        {"tie_word_embeddings": False}),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Hub("qwen2", "Qwen2ForCausalLM", "model.", "lm",
        LM, "", {"tie_word_embeddings": False, "use_mrope": False}),
    "Qwen/Qwen3-0.6B": Hub("qwen3", "Qwen3ForCausalLM", "model.", "lm", "", LM,
        {"tie_word_embeddings": True}),
    "Qwen/Qwen3-Embedding-0.6B": Hub("qwen3", "Qwen3ForCausalLM", "", "lm", "", "",
        {"tie_word_embeddings": True}),
    "google/gemma-2-2b-it": Hub("gemma2", "Gemma2ForCausalLM", "model.", "lm"),
    "google/gemma-2-9b": Hub("gemma2", "Gemma2ForCausalLM", "model.", "lm", "", "",
        {"sliding_window_size": 4096}),
    "google/gemma-3-1b-it": Hub("gemma3_text", "Gemma3ForCausalLM", "model.", "lm", "", "",
        {"cache_implementation": "hybrid", "rope_scaling": None, "sliding_window_pattern": 6}),
    "google/gemma-3-270m": Hub("gemma3_text", "Gemma3ForCausalLM", "model.", "lm", "", "",
        dict(_sliding_window_pattern=6, use_bidirectional_attention=False, rope_scaling=None,
             layer_types=["sliding_attention"] * 5 + ["full_attention"])),
    # T5 and BART
    "google-t5/t5-small": Hub("t5", "T5ForConditionalGeneration", "", "lm", "", EMBED + OLD_T5,
        {"n_positions": 512, "output_past": True, "task_specific_params": {"summarization": {}}}),
    "google-t5/t5-3b": Hub("t5", "T5WithLMHeadModel", "", "lm", "", EMBED + LM,
        {"n_positions": 512, "output_past": True, "task_specific_params": {"summarization": {}}}),
    "google/flan-t5-base": Hub("t5_gated", "T5ForConditionalGeneration", "", "lm", LM, EMBED,
        {"n_positions": 512, "output_past": True}),
    "google/mt5-small": Hub("mt5", "MT5ForConditionalGeneration", "", "lm", LM, EMBED),
    "google/byt5-small": Hub("t5_gated", "T5ForConditionalGeneration", "", "lm", LM, EMBED,
        {"tokenizer_class": "ByT5Tokenizer", "gradient_checkpointing": False}),
    "sentence-transformers/sentence-t5-base": Hub("t5_encoder", "T5EncoderModel", "", "", "",
        "~encoder.embed_tokens.weight V H\n", {"n_positions": 512, "output_past": True}),
    "facebook/bart-base": Hub("bart", "BartModel", "", "", "", EMBED, BART3
        | dict(activation_dropout=0.1, add_bias_logits=False, attention_dropout=0.1,
               classif_dropout=0.1, normalize_embedding=True)),
    "gogamza/kobart-base-v1": Hub("bart", "BartModel", "", "", "", EMBED,
        dict(add_bias_logits=False, author="", do_blenderbot_90_layernorm=False,
             extra_pos_embeddings=2, force_bos_token_to_be_generated=False, kobart_version=1.0,
             normalize_embedding=True, static_position_embeddings=False)),
    "facebook/bart-large-cnn": Hub("bart", "BartForConditionalGeneration", "model.", "lm", "",
        EMBED + BITS + LM, BART_CNN),
    "facebook/bart-large-mnli": Hub("bart", "BartForSequenceClassification", "model.",
        "classification", "classification_head.dense H H\nclassification_head.out_proj N H\n",
        EMBED + "~encoder.version one\n~decoder.version one\n",
        labels("contradiction", "neutral", "entailment")
        | dict(_num_labels=3, forced_eos_token_id=2, output_past=False)),
    "sshleifer/distilbart-cnn-12-6": Hub("bart", "BartForConditionalGeneration", "model.", "lm",
        "", EMBED + BITS, BART_CNN | dict(add_bias_logits=False, extra_pos_embeddings=2,
        normalize_embedding=True, replacing_rate=0, save_step=59, static_position_embeddings=False,
        student_decoder_layers=None, student_encoder_layers=None)),
}
