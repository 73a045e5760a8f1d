"""What a model's files say of generating texts: generation_config.json, or an older config.json."""

import pathlib
import types
from collections.abc import Mapping

from flaxlm.data.hugging_face_files import read_json
from flaxlm.errors import DataError
from flaxlm.interop.config_keys import GENERATION
from flaxlm.trained import TrainedModel

FILE = "generation_config.json"


def read_settings(directory: pathlib.Path, config: Mapping = types.MappingProxyType({})) -> dict:
    """Return the fields of generation_config.json, or those that `config` holds in its place.

    The ids that end a text are those of config.json where the other file names none. `_file` names
    the file that the others come from, if it is not generation_config.json. A run keeps that file.

    Raises:
      DataError: the file is damaged, or `eos_token_id` names no ids.
    """
    fields = read_json(directory / FILE)
    if not fields:
        fields = {name: config[name] for name in sorted(GENERATION & config.keys())}
        if fields.pop("force_bos_token_to_be_generated", False):  # how BART used to say it
            fields.setdefault("forced_bos_token_id", config.get("bos_token_id"))
        fields |= {"_file": "config.json"} if fields else {}
    if fields.get("eos_token_id") is None and config.get("eos_token_id") is not None:
        fields["eos_token_id"] = config["eos_token_id"]
    for name in ("eos_token_id", "forced_bos_token_id"):
        ids = fields.get(name)
        listed = ids if isinstance(ids, list) else [ids]
        if ids is not None and not (listed and all(type(i) is int and i >= 0 for i in listed)):
            raise DataError(f"{directory}: {name}={ids!r} is neither an id nor a list of ids")
    return fields


def to_write(model: TrainedModel) -> dict:
    """Return the fields of generation_config.json to export of a model, as far as any are known."""
    fields = {name: v for name, v in model.generation.items() if name != "_file"}
    if model.trained_here and fields:
        fields["eos_token_id"] = list(model.eos_ids)
        fields.pop("forced_bos_token_id", None)  # no text began with it in training
    return fields
