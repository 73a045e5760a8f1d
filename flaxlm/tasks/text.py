"""Plain text: pre-training, where the corpus itself is the task."""

import dataclasses
from typing import ClassVar

from flaxlm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Text(Task):
    """The token cache of `data.path`, under any objective that reads plain text."""

    reads_documents: ClassVar[bool] = True
