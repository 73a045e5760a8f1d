"""What is done with a model: `TASKS`, a row each."""

from flaxlm.tasks.choices import HellaSwag, Lambada, LastWord, MultipleChoice
from flaxlm.tasks.classification import Classification, MultiLabel
from flaxlm.tasks.generative_qa import GenerativeQA
from flaxlm.tasks.glue import GLUE
from flaxlm.tasks.instruction import Chat, Instruction
from flaxlm.tasks.minimal_pairs import Blimp, CrowsPairs, MinimalPairs, StereoSet
from flaxlm.tasks.perplexity import Perplexity
from flaxlm.tasks.question_answering import Cmrc2018, QuestionAnswering, Squad2
from flaxlm.tasks.regression import Regression, Similarity
from flaxlm.tasks.schema import Schema
from flaxlm.tasks.stdlib import StdlibPackage, StdlibSummary
from flaxlm.tasks.t5_glue import T5Glue
from flaxlm.tasks.tagging import NamedEntities, PartsOfSpeech, UniversalParts, Wnut17
from flaxlm.tasks.task import Task, Text
from flaxlm.tasks.text_to_text import DialogSum, Multi30k, Summarization, TextToText, Translation

TASKS: dict[str, type[Task]] = {
    "text": Text,
    "classification": Classification,
    "ner": NamedEntities,
    "pos": PartsOfSpeech,
    "wnut17": Wnut17,
    "ud_pos": UniversalParts,
    "regression": Regression,
    "multi_label": MultiLabel,
    "similarity": Similarity,
    "text_to_text": TextToText,
    "summarization": Summarization,
    "dialogsum": DialogSum,
    "translation": Translation,
    "multi30k": Multi30k,
    "generative_qa": GenerativeQA,
    "instruction": Instruction,
    "chat": Chat,
    "t5_glue": T5Glue,
    "question_answering": QuestionAnswering,
    "squad": QuestionAnswering,
    "squad2": Squad2,
    "cmrc2018": Cmrc2018,
    "stdlib_package": StdlibPackage,
    "stdlib_summary": StdlibSummary,
    **GLUE,
    "multiple_choice": MultipleChoice,
    "hellaswag": HellaSwag,
    "schema": Schema,
    "last_word": LastWord,
    "lambada": Lambada,
    "minimal_pairs": MinimalPairs,
    "blimp": Blimp,
    "crows_pairs": CrowsPairs,
    "stereoset": StereoSet,
    "perplexity": Perplexity,
}
