"""What of a folder goes to the Hub, decided and checked before anything is sent."""

import fnmatch
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..modeling.base_weights import PREFIX
from ..modeling.lora_adapters import ordinary_model
from ..modeling.trained_weights import TRAINED_WEIGHTS_NAME, CheckpointError
from .card_facts import is_hub_id
from .flat_export import flat_files
from .published_card import CARD_NAME, card_notes, published_card, refitted_card
from .remote_code import PROCESSOR_FILES, STUB_NAME, load_config, processor_name, stub_files
from .secret_scan import check_no_secrets, without_machine_paths
from .whole_folder import model_class

Weights = Literal["as they are", "full", "adapter"]

ADAPTER_NAMES = (TRAINED_WEIGHTS_NAME, "adapter_model.safetensors", "adapter_config.json")
_WHOLE_NAMES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors")
# Pattern → why it stays here. The first that fits decides; a folder's pattern ends with a slash.
_STAYS = {
    "checkpoint-*/": "a checkpoint to resume from",
    "runs/": "logs of TensorBoard",
    "wandb/": "logs of Weights & Biases",
    "mlruns/": "logs of MLflow",
    "__pycache__/": "compiled Python",
    ".*/": "hidden",
    "optimizer.*": "state of the training",
    "scheduler.*": "state of the training",
    "scaler.*": "state of the training",
    "rng_state*": "state of the training",
    "loss_since_log_*": "state of the training",
    "trainer_state.json": "state of the training",
    "training_args.bin": "state of the training",
    "*.bin.index.json": "names weights that stay",
    "*.lock": "a lock",
    "*.log": "a log",
    "*.tfevents*": "logs of TensorBoard",
    ".*": "hidden",
    **{
        f"*.{suffix}": "may run code when it is read: only safetensors are published"
        for suffix in ("bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "h5", "msgpack")
    },
}
# What a model's folder is made of. Anything else may be there by mistake, and what was published stays known.
_GOES = (
    "*.safetensors", "*.json", "*.jsonl", "*.jinja", "*.model", "*.spm", "*.tiktoken", "*.py", "*.md", "*.txt",
    "*.yaml", "*.yml", "*.csv", "*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif", "*.svg", "*.pdf", "license*", "notice*",
)  # fmt: skip


@dataclass(frozen=True)
class PushedFile:
    """
    A file as it will be on the Hub.

    Args:
        path (`str`): there, with forward slashes.
        content (`Path` or `bytes`): where it lies, or what was made for it.
    """

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class PushPlan:
    """
    What goes to the Hub, and what does not.

    Args:
        repo_id (`str`): `owner/name`.
        files (`list[PushedFile]`): in the order of their paths.
        left_out (`dict[str, str]`): files of the folder that stay, and why.
        notes (`list[str]`): what whoever pushes should know.
    """

    repo_id: str
    files: list[PushedFile]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


@contextmanager
def planned_push(
    folder: Path,
    repo_id: str,
    weights: Weights = "as they are",
    self_contained: bool = False,
    benchmarks: Mapping[str, str] | None = None,
    with_card: bool = True,
    card_there: str | None = None,
    token: str | bool | None = None,
) -> Iterator[PushPlan]:
    """
    Decides on what goes to the Hub, and checks it. The folder stays as it is.

    Args:
        folder (`Path`): a model's, as a training or `save_pretrained` left it, or a processor's.
        repo_id (`str`): `owner/name`.
        weights (`str`, *optional*, defaults to `"as they are"`): `"full"` adds the base models to a folder of trained
            weights, and merges its adapters; `"adapter"` makes sure that only trained weights go.
        self_contained (`bool`, *optional*, defaults to `False`): publishes the code too, in place of the two lines
            that load it from vistok.
        benchmarks (`Mapping[str, str]`, *optional*): data sets of the Hub, `owner/name` or `owner/name:task`, by the
            tasks of evaluations: for their results on the Hub.
        with_card (`bool`, *optional*, defaults to `True`): with the card of the model.
        card_there (`str`, *optional*): the card that the repository has, which stays but for how the model is used.
        token (`str` or `bool`, *optional*): that it is sent with; no file may hold it.

    Yields:
        [`PushPlan`]: usable as long as the context is open.

    Raises:
        FileNotFoundError: if there is no such folder, or no model or processor in it.
        CheckpointError: if weights are truncated, or those that are to go are missing.
        ValueError: if the name is none of the Hub's, a card does not hold, a file holds a credential, or what is asked
            for does not fit the folder.
    """
    check_repo_id(repo_id)
    config = _checked_folder(folder)
    with TemporaryDirectory(prefix="vistok-push-") as work:
        found, left_out = _files_of(folder)
        if weights == "full" and TRAINED_WEIGHTS_NAME in found:
            found = _completed(folder, Path(work), found)
            config = load_config(Path(work))
        elif weights == "adapter":
            found, left_out = _trained_only(folder, found, left_out)
        _check_weights(folder, found, config)
        only_trained = TRAINED_WEIGHTS_NAME in found
        notes = _check_base_models(config, only_trained, self_contained)
        source = Path(work) if weights == "full" and (Path(work) / "config.json").is_file() else folder
        make_code = flat_files if self_contained else stub_files
        made = {**make_code(source, config, processor_name(folder))}
        if with_card and config is not None:
            code = "self-contained" if self_contained else "stub" if made else "package"
            if card_there is not None:
                made |= refitted_card(card_there, folder, repo_id, code)
            else:
                made |= published_card(folder, repo_id, code, complete=not only_trained, benchmarks=benchmarks or {})
                notes += card_notes(made[CARD_NAME], repo_id)
        if self_contained and not any(name.endswith(".py") for name in made):
            notes.append(f"no code goes: transformers has that of {getattr(config, 'model_type', 'this processor')}")
        if self_contained and STUB_NAME in found:
            del found[STUB_NAME]
            left_out[STUB_NAME] = "the code itself goes in its place"
        files = {name: PushedFile(name, path) for name, path in found.items()}
        files |= {name: PushedFile(name, text.encode("utf-8")) for name, text in made.items()}
        files = {name: without_machine_paths(file) for name, file in files.items()}
        plan = PushPlan(repo_id, [files[name] for name in sorted(files)], left_out, notes)
        check_no_secrets(plan.files, token=token)
        yield plan


def check_repo_id(repo_id: str) -> None:
    """
    Makes sure that a name is that of a repository of the Hub.

    Args:
        repo_id (`str`): `owner/name`.

    Raises:
        ValueError: if it is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of the Hub, expected owner/name: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of the Hub: expected owner/name, such as my-organisation/gvt-demo.")


def _checked_folder(folder: Path) -> PreTrainedConfig | None:
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.is_file() else f"There is no folder {folder}"
        raise FileNotFoundError(f"{what}: expected a folder that a training ended with.")
    if not any((folder / name).is_file() for name in ("config.json", *PROCESSOR_FILES)):
        raise FileNotFoundError(
            f"{folder} holds neither a model nor a processor: it has no config.json. Expected a folder that a "
            "training ended with, or that save_pretrained wrote."
        )
    return load_config(folder)


def _files_of(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    found, left_out = {}, {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() or (path.is_symlink() and not path.is_dir()):
            name = path.relative_to(folder).as_posix()
            if reason := _reason_to_stay(name) or _reason_of_link(path, folder):
                left_out[name] = reason
            else:
                found[name] = path
    return found, left_out


def _reason_of_link(path: Path, folder: Path) -> str:
    """Weights may lie elsewhere, and all files of a folder in the cache of the Hub's client do."""
    if not path.exists():
        return "a link to nothing"
    at_home = (folder.resolve(), Path(constants.HF_HUB_CACHE).resolve())
    if path.suffix == ".safetensors" or any(path.resolve().is_relative_to(place) for place in at_home):
        return ""
    return "a link to a file that is not in the folder"


def _reason_to_stay(name: str) -> str:
    *parents, last = name.lower().split("/")
    for pattern, reason in _STAYS.items():
        if pattern.endswith("/"):
            if any(fnmatch.fnmatch(parent, pattern[:-1]) for parent in parents):
                return reason
        elif fnmatch.fnmatch(last, pattern):
            return reason
    return "" if _is_one_of(last, _GOES) else "no file of a model"


def _completed(folder: Path, work: Path, found: Mapping[str, Path]) -> dict[str, Path]:
    """The files of a folder of trained weights, with all weights in the place of these."""
    config = load_config(folder)
    if config is None:
        raise ValueError(f"{folder} holds trained weights and no config.json, which says of what model they are.")
    ordinary_model(model_class(config).from_pretrained(folder, dtype="auto")).save_pretrained(work)
    for name in PROCESSOR_FILES:
        if name in found:  # beside the config, to name the same code
            shutil.copyfile(found[name], work / name)
    stay = {name: path for name, path in found.items() if not _is_one_of(name, (*ADAPTER_NAMES, *_WHOLE_NAMES))}
    return {**stay, **{path.relative_to(work).as_posix(): path for path in work.rglob("*") if path.is_file()}}


def _trained_only(
    folder: Path, found: Mapping[str, Path], left_out: Mapping[str, str]
) -> tuple[dict[str, Path], dict[str, str]]:
    if not any(name in found for name in ADAPTER_NAMES):
        raise CheckpointError(
            f"{folder} holds no trained weights alone ({' or '.join(ADAPTER_NAMES[:2])}): train with "
            "save_trained_only, call save_trained_weights(model, folder), or push all weights, without --adapter-only."
        )
    whole = {name: "adapter only" for name in found if _is_one_of(name, _WHOLE_NAMES)}
    return {name: path for name, path in found.items() if name not in whole}, {**left_out, **whole}


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _check_weights(folder: Path, found: Mapping[str, Path], config: PreTrainedConfig | None) -> None:
    weights = {name: path for name, path in found.items() if name.endswith(".safetensors")}
    if config is not None and not weights:
        raise CheckpointError(
            f"{folder} holds no weights as safetensors. Weights of PyTorch (.bin, .pt, .ckpt) are not published: "
            "vistok convert, or save_pretrained after loading them, makes safetensors of them."
        )
    for name, path in found.items():
        if name.endswith(".safetensors.index.json"):
            named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            if missing := sorted(named - {other.rpartition("/")[2] for other in weights}):
                raise CheckpointError(f"{path} names {missing[0]}, which is not in {folder}: nothing was pushed.")
    for name, path in weights.items():
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged ({error}): nothing was pushed."
            ) from error
        if match := re.fullmatch(r"(.*)model-\d+-of-(\d+)\.safetensors", name):
            shards = [other for other in weights if re.fullmatch(rf"{match[1]}model-\d+-of-{match[2]}.*", other)]
            if len(shards) != int(match[2]):
                raise CheckpointError(
                    f"{folder} has {len(shards)} of the {int(match[2])} files that its weights are in: nothing was "
                    "pushed."
                )


def _check_base_models(config: PreTrainedConfig | None, only_trained: bool, self_contained: bool) -> list[str]:
    """Whether what completes trained weights can be had where these are loaded; what to tell of it."""
    names = (getattr(config, "base_models", None) or {}) if only_trained else {}
    for part, name in names.items():
        if self_contained and name.startswith(PREFIX):
            raise ValueError(
                f"base_models.{part} is {name}, which is vistok's own, and --self-contained is for where vistok is "
                "not installed: push all weights (--full), or leave --self-contained out."
            )
        if not (name.startswith((PREFIX, "./")) or is_hub_id(name)):
            raise ValueError(
                f"base_models.{part} is {name!r}, a folder of this machine, and only the trained weights would be "
                "pushed: push all weights (--full), or write a Hub id into config.json."
            )
    told = [f"base_models.{part}: {name}" for part, name in names.items()]
    return [f"only what was trained goes; loading it adds {', '.join(told)}"] if told else []


__all__ = ["ADAPTER_NAMES", "CARD_NAME", "PushPlan", "PushedFile", "Weights", "check_repo_id", "planned_push"]
