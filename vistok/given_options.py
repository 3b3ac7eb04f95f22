"""Which options of a command line were given, for commands some of whose options belong to one mode alone."""

import argparse
from collections.abc import Callable, Iterable


def given_options(
    options: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None], names: Iterable[str]
) -> list[str]:
    """
    Those of the named options that are not as they are by default, as they are written: `["--top-k", …]`.

    Args:
        options (`argparse.Namespace`): of the command line.
        add_arguments (`Callable`): of the command: tells the defaults.
        names (`Iterable[str]`): as fields of `options`.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != parser.get_default(name)]
