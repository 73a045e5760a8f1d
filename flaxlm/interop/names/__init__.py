"""Names of other people's formats: one table a family, found by `model_type`."""

from flaxlm.interop.names import (
    albert,
    bart,
    bert,
    distilbert,
    gpt2,
    gpt_neox,
    llama,
    modernbert,
    t5,
)
from flaxlm.interop.spec import Family

# The order in which an architecture of ours looks for its counterpart.
FAMILIES: tuple[Family, ...] = (
    bert.BERT,
    bert.ROBERTA,
    bert.ELECTRA,
    distilbert.DISTILBERT,
    albert.ALBERT,
    modernbert.MODERNBERT,
    gpt2.GPT2,
    gpt_neox.GPT_NEOX,
    *llama.FAMILIES,
    t5.T5,
    t5.MT5,
    bart.BART,
)

BY_TYPE: dict[str, Family] = {kind: family for family in FAMILIES for kind in family.model_types}
