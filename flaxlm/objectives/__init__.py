"""What a model is trained to do: a frozen dataclass, and a row here."""

from flaxlm.objectives.causal_lm import CausalLM
from flaxlm.objectives.in_batch import InBatch
from flaxlm.objectives.masked_lm import MaskedLM
from flaxlm.objectives.objective import Objective
from flaxlm.objectives.question_answering import QuestionAnswering
from flaxlm.objectives.sequence import Classification, MultiLabel, Regression
from flaxlm.objectives.span_corruption import SpanCorruption
from flaxlm.objectives.text_to_text import TextToText
from flaxlm.objectives.token_classification import TokenClassification

OBJECTIVES: dict[str, type[Objective]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": SpanCorruption,
    "classification": Classification,
    "token_classification": TokenClassification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "in_batch": InBatch,
    "text_to_text": TextToText,
    "question_answering": QuestionAnswering,
}
