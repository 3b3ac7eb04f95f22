"""Files that ship with the package: training recipes, small trained adapters, and modules of metrics."""

from pathlib import Path

# The folder that holds `configuration/`: `vistok/` in an installed wheel and, through the symlinks, in a checkout; the
# repository itself in a checkout whose symlinks were not made. `recipes/` and the others lie in it either way.
_SHIPPED_IN = Path(__file__).absolute().parents[1]


def shipped_path(name: str) -> Path:
    """
    Finds a file or folder that ships with vistok, whether it was installed or runs from a checkout.

    Args:
        name (`str`): path from the top of the repository, with forward slashes: `"checkpoints/gvt-demo"`,
            `"recipes/gvt/demo.yaml"`, `"metrics/gvtbench_oc"`.

    Returns:
        `Path`: where it lies on this machine.

    Raises:
        FileNotFoundError: if nothing ships under that name; the message lists what does.
    """
    top, _, _ = name.partition("/")
    path = _SHIPPED_IN / name
    if top in ("recipes", "checkpoints", "metrics") and ".." not in path.parts and path.exists():
        return path
    found = sorted(
        str(file.relative_to(_SHIPPED_IN).as_posix())
        for pattern in ("recipes/**/*.yaml", "checkpoints/*/", "metrics/*/")
        for file in _SHIPPED_IN.glob(pattern)
    )
    raise FileNotFoundError(f"vistok ships nothing named {name!r}. It ships: {', '.join(found) or 'nothing'}.")


def here_or_shipped(name: str) -> Path:
    """
    A file as it is named from here, or else the one of this name that ships with vistok.

    Args:
        name (`str`): path, such as `"recipes/gvt/demo.yaml"`.

    Returns:
        `Path`: that of the file; as it was given where neither is there.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    try:
        return shipped_path(path.as_posix())
    except FileNotFoundError:
        return path


__all__ = ["here_or_shipped", "shipped_path"]
