"""Names of other people's formats: one table a family, found by `model_type`."""

from flaxlm.interop.names import bert, encoder_decoder, gpt, llama, modernbert
from flaxlm.interop.spec import Family

# The order in which an architecture of ours looks for its counterpart.
FAMILIES: tuple[Family, ...] = (
    *(bert.BERT, bert.ROBERTA, bert.ELECTRA, bert.DISTILBERT, bert.ALBERT, modernbert.MODERNBERT),
    *(gpt.GPT2, gpt.GPT_NEOX, *llama.FAMILIES),
    *(encoder_decoder.T5, encoder_decoder.MT5, encoder_decoder.BART),
)

BY_TYPE: dict[str, Family] = {kind: family for family in FAMILIES for kind in family.model_types}
