"""What is done with a model: `TASKS`, a row each."""

from flaxlm.tasks.classification import Classification
from flaxlm.tasks.glue import GLUE
from flaxlm.tasks.multi_label import MultiLabel
from flaxlm.tasks.regression import Regression
from flaxlm.tasks.similarity import Similarity
from flaxlm.tasks.stdlib import StdlibPackage, StdlibSummary
from flaxlm.tasks.task import Task
from flaxlm.tasks.text import Text
from flaxlm.tasks.text_to_text import TextToText

TASKS: dict[str, type[Task]] = {
    "text": Text,
    "classification": Classification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "similarity": Similarity,
    "text_to_text": TextToText,
    "stdlib_package": StdlibPackage,
    "stdlib_summary": StdlibSummary,
    **GLUE,
}
