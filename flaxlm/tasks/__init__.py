"""What is done with a model: `TASKS`, a row each."""

from flaxlm.tasks.choices import HellaSwag, Lambada, LastWord, MultipleChoice
from flaxlm.tasks.classification import Classification
from flaxlm.tasks.generative_qa import GenerativeQA
from flaxlm.tasks.glue import GLUE
from flaxlm.tasks.instruction import Chat, Instruction
from flaxlm.tasks.minimal_pairs import Blimp, CrowsPairs, MinimalPairs
from flaxlm.tasks.multi_label import MultiLabel
from flaxlm.tasks.perplexity import Perplexity
from flaxlm.tasks.question_answering import Cmrc2018, QuestionAnswering, Squad2
from flaxlm.tasks.regression import Regression
from flaxlm.tasks.similarity import Similarity
from flaxlm.tasks.stdlib import StdlibPackage, StdlibSummary
from flaxlm.tasks.stereoset import StereoSet
from flaxlm.tasks.t5_glue import T5Glue
from flaxlm.tasks.tagging import NamedEntities, PartsOfSpeech, UniversalParts, Wnut17
from flaxlm.tasks.task import Task
from flaxlm.tasks.text import Text
from flaxlm.tasks.text_to_text import DialogSum, Summarization, TextToText
from flaxlm.tasks.translation import Multi30k, Translation

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
    "last_word": LastWord,
    "lambada": Lambada,
    "minimal_pairs": MinimalPairs,
    "blimp": Blimp,
    "crows_pairs": CrowsPairs,
    "stereoset": StereoSet,
    "perplexity": Perplexity,
}
