"""Command line: `python -m flaxlm <verb> --config=FILE[:args] --workdir=DIR [--config.a.b=value]`.

What a verb takes and does stands in `flaxlm/commands/`, a file and a row each.
"""

import importlib
import logging
import os
import pathlib
import sys
import traceback
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
from flaxlm.processes import ending, signals
from flaxlm.progress import note, shown


def set_up_jax(options) -> None:
    """Choose platform, compilation cache and process group, before any device is touched."""
    import jax

    from flaxlm import sharding

    if options.platform and not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", options.platform)
    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        path = pathlib.Path(home).expanduser() / "flaxlm" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    coordinator = getattr(options, "coordinator", None)
    places = [n for n in ("num_processes", "process_id") if getattr(options, n, None) is not None]
    detected = any(name in os.environ for name in ("SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"))
    found = detected and options.joins and _several_hosts()
    if places and not (coordinator or found):
        raise ConfigError(f"--{places[0]} needs --coordinator=HOST:PORT beside it")
    sharding.make_room_for_collectives(several_processes=bool(coordinator or found))
    if coordinator or found:
        if coordinator and None in (options.num_processes, options.process_id):
            raise ConfigError("--coordinator needs --num_processes and --process_id beside it")
        jax.distributed.initialize(
            coordinator, options.num_processes, options.process_id, heartbeat_timeout_seconds=20
        )


def _several_hosts() -> bool:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return max(hosts, int(os.environ.get("SLURM_NTASKS", "1"))) > 1


def run(argv: list[str]) -> None:
    """Run one command; raises FlaxlmError for every expected failure."""
    if not argv:
        raise ConfigError(f"no verb is given; choose one of: {', '.join(COMMANDS)}, --help")
    if argv[0] in ("-h", "--help", "help"):
        print(usage())
        return
    verb = choose("verb", argv[0], COMMANDS)
    command = importlib.import_module(f"flaxlm.commands.{verb}")
    from flaxlm.commands import flags, recipe
    from flaxlm.commands.options import apart, settle

    arguments, spec, overrides = apart(argv[1:])
    if "help" in overrides and command.Options.takes_config:
        print(recipe.config_help(spec, overrides))
        return
    options = flags.parse(command.Options, arguments)
    if options is None:
        print(flags.help_text(verb, COMMANDS[verb], command.Options))
        return
    options, config = settle(verb, options, spec, overrides)
    set_up_jax(options)
    command.run(options, config)


def speak_utf_8() -> None:
    """Make standard output and error UTF-8; a terminal of another encoding shows `?` for the rest.

    PYTHONIOENCODING, which is meant for Python alone, is respected as a terminal is.
    """
    for stream in (sys.stdout, sys.stderr):
        fixed = stream.isatty() or "PYTHONIOENCODING" in os.environ
        stream.reconfigure(encoding=stream.encoding if fixed else "utf-8", errors="replace")


def main() -> int:
    """Return the exit code (see `flaxlm.errors`); what was not foreseen keeps its traceback."""
    speak_utf_8()
    signals.listen(command=True)
    logging.getLogger("flaxlm").addFilter(shown)
    warnings.showwarning = lambda message, *_: note(f"warning: {message}")
    try:
        run(sys.argv[1:])
    except FlaxlmError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt as asked:
        return fail(signals.reason(*asked.args), Preempted.exit_code)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        missing = isinstance(error, FileNotFoundError)
        code = (MissingInput if missing else StorageError).exit_code
        return fail(f"{place}{cause_of(error, error.filename or '.')}", code)
    except Exception as error:
        for line in traceback.format_exc().splitlines():
            note(line)
        return fail(f"a bug in flaxlm: {type(error).__name__}: {error}", FlaxlmError.exit_code)
    return 0


def fail(message: str, code: int) -> int:
    """Print `message` as one line; return `code`."""
    ending.say(message)
    return code


if __name__ == "__main__":
    sys.exit(main())
