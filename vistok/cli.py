"""The command `vistok`: a module `cli_<command>` for each subcommand. What only a subcommand needs it imports when it
runs: the help costs `import vistok` alone."""

import argparse
import gc
import logging
import shlex
import sys
import traceback
from collections.abc import Sequence

from . import (
    cli_app,
    cli_ask,
    cli_convert,
    cli_demo,
    cli_evaluate,
    cli_fetch,
    cli_merge,
    cli_plan,
    cli_push,
    cli_scenes,
    cli_study,
    cli_tokens,
    cli_train,
    cli_words,
)

# In the order of the help. Each has SUMMARY, DESCRIPTION, add_arguments and run; one with TAKES_OVERRIDES finds
# further arguments in `options.rest`.
COMMANDS = {
    "demo": cli_demo,
    "fetch": cli_fetch,
    "ask": cli_ask,
    "train": cli_train,
    "plan": cli_plan,
    "evaluate": cli_evaluate,
    "scenes": cli_scenes,
    "study": cli_study,
    "words": cli_words,
    "tokens": cli_tokens,
    "convert": cli_convert,
    "merge": cli_merge,
    "push": cli_push,
    "app": cli_app,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        arguments (`list[str]`, *optional*): by default those of the command line.

    Returns:
        `int`: exit code: 0, 1 if a check of the demo failed, 2 for what the user can mend, 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(COMMANDS[options.command], "TAKES_OVERRIDES", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)} (see vistok {options.command} --help)")
    options.rest = rest
    options.command_line = shlex.join(["vistok", *arguments])
    _show_messages(logging.INFO if options.command in ("fetch", "train", "study", "push") else logging.WARNING)
    try:
        code = options.run(options) or 0
        _leave_process_group()
        return code
    except KeyboardInterrupt:
        print(f"vistok {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug or not isinstance(error, _user_errors()):
            raise
        print(f"vistok {options.command}: error: {str(error).strip()}", file=sys.stderr)
        if not _is_told_by_vistok(error):
            print(f"(vistok {options.command} --debug … shows where this comes from)", file=sys.stderr)
        return 2


def _leave_process_group() -> None:
    """Ends what several processes share, and its threads: one still busy when Python ends aborts the process."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # a trainer that lies there keeps the threads alive
        distributed.destroy_process_group()


def _is_told_by_vistok(error: Exception) -> bool:
    """Whether vistok raised an error, whose message then says what to do, and not Python or a dependency."""
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    package = str(frame.f_globals.get("__package__")).split(".")[0]
    return package == "vistok" and getattr(error, "errno", None) is None


def _user_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    from .modeling.atomic_folder import FetchError

    # BadSampleError and CheckpointError are ValueErrors, FileNotFoundError is an OSError.
    return (ValueError, OSError, ImportError, FetchError, StrictDataclassError)


def _show_messages(level: int) -> None:
    """What the library logs goes to stderr, as it is."""
    logger = logging.getLogger("vistok")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="vistok",
        description="Visual tokenizers for large language models: see all of it with `vistok demo`.",
        epilog="`vistok <command> --help` explains a command and gives an example.",
    )
    parser.add_argument("--version", action="version", version=f"vistok {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="<command>", required=True)

    for name, module in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=module.run)
        added.add_argument("--debug", action="store_true", help="show where an error comes from")
        module.add_arguments(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())
