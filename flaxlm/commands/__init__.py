"""What the command line does: a verb is a file here and a row of `COMMANDS`.

A verb's module holds `Options`, the dataclass that its flags are made of (`options.py`), and
`run(options, config)`.
"""

import time

STARTED = time.time()  # before what takes long to import

COMMANDS = {
    "tokenize": "train the tokenizer if there is none, and write the token cache",
    "train": "pre-train, fine-tune (--config.init=RUN) or resume",
    "evaluate": "score a split with a run's checkpoint",
    "generate": "continue prompts, or fill [MASK] with an encoder",
    "embed": "write a vector for each text of a JSONL file",
    "inspect": "print step, parameter count and digests of a checkpoint",
    "convert": "turn a Hugging Face directory (hf:DIR) into a run directory, or the other way",
    "glue": "fine-tune and score every GLUE task of a folder, and print the table",
}


def usage() -> str:
    """Return the text of `python -m flaxlm --help`."""
    verbs = "\n".join(f"  {verb:10} {text}" for verb, text in COMMANDS.items())
    return f"""\
usage: python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR [--config.section.key=value …]

{verbs}

A verb on an existing run directory needs no --config. Where a run is read, hf:NAME_OR_DIR
reads a Hugging Face model instead; --config.init=hf:NAME_OR_DIR starts from one.
python -m flaxlm <verb> --help lists a verb's flags, <verb> --config.help the keys of a config."""
