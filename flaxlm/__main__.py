"""Command line: `python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR [--config.a.b=value]`.

What a verb takes and does stands in `flaxlm/commands/`, a file and a row each.
"""

import importlib
import logging
import os
import sys
import threading
import warnings

from flaxlm.commands import COMMANDS, usage
from flaxlm.errors import (
    ConfigError,
    FlaxlmError,
    MissingInput,
    Preempted,
    StorageError,
    cause_of,
    choose,
)
from flaxlm.processes import broke, ending, signals
from flaxlm.progress import Shown, drop_unwritten, note, note_traceback, put
from flaxlm.untrusted import panics


def set_up_jax(options) -> None:
    """Choose platform, compilation cache and process group, before any device is touched."""
    import jax

    from flaxlm import sharding

    if options.platform and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", options.platform)
    if not jax.config.jax_compilation_cache_dir:
        home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
        if not home.startswith("~"):  # a user of a container may have no home
            jax.config.update("jax_compilation_cache_dir", os.path.join(home, "flaxlm", "xla"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if (promotion := jax.config.jax_numpy_dtype_promotion) != "standard":
        raise ConfigError(
            f"JAX_NUMPY_DTYPE_PROMOTION={promotion} is not supported: models and metrics rely on "
            "JAX's standard promotion of dtypes; unset it"
        )
    sharding.make_room_for_collectives(several_processes=bool(ending.group))
    if ending.group:
        from flaxlm.commands.several import connect_devices

        connect_devices()
    try:
        jax.devices()
    except RuntimeError as error:
        if broke(error):
            raise
        asked = os.environ.get("JAX_PLATFORMS", "") or "not set"
        raise ConfigError(f"no device can be used (JAX_PLATFORMS is {asked}): {error}") from None


def run(argv: list[str]) -> None:
    """Run one command; raises FlaxlmError for every expected failure."""
    if not argv:
        raise ConfigError(f"no verb is given; choose one of: {', '.join(COMMANDS)}, --help")
    if argv[0] in ("-h", "--help", "help"):
        put(usage())
        return
    verb = choose("verb", argv[0], COMMANDS)
    command = importlib.import_module(f"flaxlm.commands.{verb}")
    from flaxlm.commands import flags, recipe
    from flaxlm.commands.options import apart, settle
    from flaxlm.commands.several import agree, join

    arguments, spec, overrides = apart(argv[1:])
    if "help" in overrides and command.Options.takes_config:
        put(recipe.config_help(spec, overrides))
        return
    options = flags.parse(command.Options, arguments)
    if options is None:
        put(flags.help_text(verb, COMMANDS[verb], command.Options))
        return
    join(options)
    options, config = settle(verb, options, spec, overrides)
    agree(options, config)
    set_up_jax(options)
    command.run(options, config)


def speak_utf_8() -> None:
    """Make standard output and error UTF-8; a terminal of another encoding shows `?` for the rest.

    PYTHONIOENCODING, which is meant for Python alone, is respected as a terminal is.
    """
    for number, name in enumerate(("stdout", "stderr"), 1):
        if getattr(sys, name) is None:  # closed: what is opened next would take its place
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        fixed = stream.isatty() or "PYTHONIOENCODING" in os.environ
        stream.reconfigure(encoding=stream.encoding if fixed else "utf-8", errors="replace")


def main() -> int:
    """Return the exit code (see `flaxlm.errors`); what was not foreseen keeps its traceback."""
    speak_utf_8()
    signals.listen(command=True)
    logging.setLogRecordFactory(Shown)
    threading.excepthook = lambda lost: note_traceback(lost.exc_value)
    warnings.showwarning = lambda message, *_: note(f"warning: {message}")
    try:
        with panics("a library stopped"):
            run(sys.argv[1:])
        if ending.group:
            ending.group.leave()
        ending.unwound.set()
    except BaseException as error:
        ending.unwound.set()
        if isinstance(error, SystemExit):
            raise
        return fail(*reason(error))
    finally:
        drop_unwritten()
    return 0


def reason(error: BaseException) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if ending.group:
        ending.group.await_cause(error)
    if isinstance(error, FlaxlmError):
        return str(error), error.exit_code
    # Where an import or a callback is interrupted, other errors may come of it.
    if isinstance(error, KeyboardInterrupt) or signals.interrupted:
        return signals.reason(), Preempted.exit_code
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        missing = isinstance(error, FileNotFoundError)
        code = (MissingInput if missing else StorageError).exit_code
        return f"{place}{cause_of(error, error.filename or '.')}", code
    if ending.group and broke(error):
        return f"the connection to another process broke: {error}", Preempted.exit_code
    note_traceback(error)
    return f"a bug in flaxlm: {type(error).__name__}: {error}", FlaxlmError.exit_code


def fail(message: str, code: int) -> int:
    """Print `message` as one line, and return `code`; one of several processes ends all of them.

    After an interrupt the process ends here: what it was in the midst of may hang at exit, and the
    interpreter may take an interrupt that foreign code has met for its own end (130).
    """
    if ending.group or signals.interrupted:
        ending.end(code, message)
    ending.say(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
