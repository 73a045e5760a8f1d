"""A model whose next token depends on the last one alone, and options to ask it with."""

import flax.linen as nn

from flaxlm.data.vocabulary import ByteTokenizer
from flaxlm.models.recurrent import RecurrentConfig
from flaxlm.trained import TrainedModel

BYTES = ByteTokenizer(sentinels=4)
# Of `GenerateConfig`; bos, which a Table cannot tell, is tried in test_continuations.py.
OTHER = {"max_new_tokens": 1, "temperature": 0.25, "top_k": 1, "top_p": 0.1, "seed": 3,
         "stop": ("~",), "num_samples": 2, "num_beams": 3, "length_penalty": 5.0}  # fmt: skip


class Table(nn.Module):
    """A model that is a table: the next token's logits [V, V] by the last token."""

    config: RecurrentConfig = RecurrentConfig()

    def prefill(self, batch, cache_length):
        table_VV = self.get_variable("params", "table")
        return table_VV[batch["tokens"][:, -1]], {"seen": batch["segment_ids"].sum(axis=1)}

    def decode_step(self, tokens_B1, cache):
        table_VV = self.get_variable("params", "table")
        return table_VV[tokens_B1[:, 0]], {"seen": cache["seen"] + 1}


def table(params: dict, family: str = "decoder") -> TrainedModel:
    return TrainedModel(family, Table(), params, BYTES)
