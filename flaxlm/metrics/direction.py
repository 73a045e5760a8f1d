"""Which way each score is better."""

MORE = (
    *("accuracy", "precision", "recall", "f1", "exact_match", "matthews", "pearson", "spearman"),
    *("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "lm", "icat"),
)
LESS = (
    *("loss", "mlm", "nsp", "perplexity", "word_perplexity", "bits_per_byte", "ece", "brier"),
    *("mse", "mae", "unparsed", "cut"),
)
SCORES = (*MORE, *LESS)
# What stands before or behind a score's name where it is of a part, or a variant of another.
BEFORE = ("best_", "subset_", "tag_", "mlm_", "nsp_", "token_")
BEHIND = ("_macro", "_micro", "_has_answer", "_no_answer", "_low", "_high")


def direction(metric: str) -> str:
    """Return `max` where more of a score is better, `min` where less is, '' where nobody knows.

    Args:
      metric: a score's name, which may end in the group that it is of: accuracy/category=pets.
    """
    name = metric.partition("/")[0]
    for prefix in BEFORE:
        name = name.removeprefix(prefix)
    for suffix in BEHIND:
        name = name.removesuffix(suffix)
    return "max" if name in MORE else "min" if name in LESS else ""
