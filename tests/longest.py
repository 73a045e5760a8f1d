"""The files of tests that take longest, in turn."""

# Begun first, so that no worker is left alone with one.
LONGEST = """
test_hf_verbs test_train test_step test_models test_hf_parity test_labels test_hf_real
test_processes test_text_runs test_hf_tokenizer test_zero_shot_runs test_continuations
test_decoding test_generate test_tagging_run test_lora test_given test_objective_models
test_exact_evaluation test_question_answering_run test_golden test_hf_training test_hf_hostile
test_checkpoint_damage test_seeds test_glue_verb test_bad_input test_tasks test_entities
test_question_answering test_bad_data test_regression test_hub_checkpoints test_own_task
""".split()
