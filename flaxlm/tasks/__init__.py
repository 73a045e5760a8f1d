"""What is done with a model: `TASKS`, a row each."""

from flaxlm.tasks.classification import Classification
from flaxlm.tasks.question_answering import Cmrc2018, QuestionAnswering, Squad2
from flaxlm.tasks.stdlib import StdlibPackage, StdlibSummary
from flaxlm.tasks.task import Task
from flaxlm.tasks.text import Text
from flaxlm.tasks.text_to_text import TextToText

TASKS: dict[str, type[Task]] = {
    "text": Text,
    "classification": Classification,
    "text_to_text": TextToText,
    "question_answering": QuestionAnswering,
    "squad": QuestionAnswering,
    "squad2": Squad2,
    "cmrc2018": Cmrc2018,
    "stdlib_package": StdlibPackage,
    "stdlib_summary": StdlibSummary,
}
