"""What is done with a model: `TASKS`, a row each."""

from flaxlm.tasks.choices import HellaSwag, Lambada, LastWord, MultipleChoice
from flaxlm.tasks.classification import Classification
from flaxlm.tasks.minimal_pairs import Blimp, CrowsPairs, MinimalPairs
from flaxlm.tasks.perplexity import Perplexity
from flaxlm.tasks.stdlib import StdlibPackage, StdlibSummary
from flaxlm.tasks.stereoset import StereoSet
from flaxlm.tasks.task import Task
from flaxlm.tasks.text import Text
from flaxlm.tasks.text_to_text import TextToText

TASKS: dict[str, type[Task]] = {
    "text": Text,
    "classification": Classification,
    "text_to_text": TextToText,
    "stdlib_package": StdlibPackage,
    "stdlib_summary": StdlibSummary,
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
