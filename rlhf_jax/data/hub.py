"""Data sets and models of the Hugging Face hub by name: ``hf://owner/name[/split][@revision]``.

What a branch or tag means is looked up once, and the commit is what is read. Files lie where
``huggingface_hub`` keeps them (``HF_HOME``). Beside them is written what the hub said of a commit,
so that what was fetched whole is read without a network, too.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_jax.errors import InputError, check

log = logging.getLogger(__name__)

SCHEME = "hf:"
"""How a path begins that names something of the hub: ``Path`` makes one slash of two."""
COMMIT = re.compile(r"[0-9a-f]{40}")
SHARD = re.compile(r"[-_.]?\d{2,9}(-of-\d{1,9})?(-[0-9a-f]{16})?$")
"""What the name of a part of a split ends in: train-00000-of-00002, 0000."""
NO_SPLITS = ("data", "default")
"""Folders that hold splits and are none."""
Kind = Literal["dataset", "model"]
MODEL_FILES = (".json", ".safetensors", ".jinja", ".model", "merges.txt", "vocab.bpe")
"""What the name of a file of a model ends in that is read."""
MOST_SHOWN = 12


class HubName(NamedTuple):
    """What a path says of the hub."""

    repo: str
    """OWNER/NAME."""
    part: str
    """A split, a folder or a file; empty: all."""
    revision: str
    """A branch, tag or commit; empty: the main branch."""

    def __str__(self) -> str:
        part = f"/{self.part}" if self.part else ""
        return f"hf://{self.repo}{part}{f'@{self.revision}' if self.revision else ''}"


class Listing(NamedTuple):
    """What the hub has of a repository at a commit."""

    commit: str
    files: tuple[str, ...]


def is_hub_name(path: str | Path) -> bool:
    """Whether a path names something of the hub, and nothing on this machine."""
    return Path(path).parts[:1] == (SCHEME,)


def read_name(path: str | Path) -> HubName:
    """The parts of ``hf://OWNER/NAME[/PART][@REVISION]``. Raises InputError."""
    place, _, revision = str(path).removeprefix(SCHEME).strip("/").partition("@")
    owner, _, rest = place.partition("/")
    name, _, part = rest.partition("/")
    check(
        bool(owner and name) and (bool(revision) or "@" not in str(path)),
        f"{SCHEME}//{str(path).removeprefix(SCHEME).strip('/')}: expected "
        "hf://OWNER/NAME, with a split (hf://OWNER/NAME/train) and a revision "
        "(hf://OWNER/NAME/train@COMMIT) if need be",
    )
    return HubName(f"{owner}/{name}", part, revision)


def pinned(path: str | Path, kind: Kind) -> str:
    """The name of what is read with its commit: hf://owner/name/train@0123...; others unchanged."""
    if not is_hub_name(path):
        return str(path)
    name = read_name(path)
    return str(name._replace(revision=listing(name.repo, name.revision, kind).commit))


# --- what a name means ----------------------------------------------------------------------------


def fetch_data(path: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of a split of a data set, fetched if they are not here yet.

    ``suffixes`` are those of files of rows. Raises InputError where a name means no split, or
    several.
    """
    name = read_name(path)
    there = listing(name.repo, name.revision, "dataset")
    files = [file for file in there.files if file.endswith(tuple(suffixes))]
    check(
        bool(files),
        f"{name} has no files of rows ({', '.join(suffixes)}); if the hub shows its rows, it has "
        f"them as Parquet: {name._replace(revision='refs/convert/parquet')}",
    )
    return [_download(name, file, there, "dataset") for file in chosen(name, files)]


def chosen(name: HubName, files: Sequence[str]) -> list[str]:
    """Of the files of a data set those that ``name.part`` means. Raises InputError."""
    if name.part in files:
        return [name.part]
    splits: dict[str, list[str]] = {}
    for file in sorted(files):
        splits.setdefault(split_of(file), []).append(file)
    asked = name.part
    fitting = [split for split in splits if split == asked] or [
        split
        for split in splits
        if not asked or split.endswith(f"/{asked}") or split.startswith(f"{asked}/")
    ]
    if len(fitting) == 1:
        return splits[fitting[0]]
    names = [str(name._replace(part=split)) for split in fitting or splits]
    shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
    what = "has several splits" if fitting else f"has no split {asked}"
    raise InputError(f"{name._replace(part='')} {what}: name one of {shown}")


def split_of(file: str) -> str:
    """The split that a file of a data set holds, or a part of: train, harmless-base/test."""
    *folders, name = file.split("/")
    stem = SHARD.sub("", name.partition(".")[0])
    parts = [folder for folder in folders if folder not in NO_SPLITS]
    return "/".join([*parts, *([stem] if stem or not parts else [])])


def local_model(path: str | Path) -> Path:
    """Where a model lies on this machine: ``path`` itself, or what is fetched from the hub."""
    return fetch_model(path) if is_hub_name(path) else Path(path)


def fetch_model(path: str | Path) -> Path:
    """The folder of a model, or its .gguf file, fetched if it is not here. Raises InputError."""
    name = read_name(path)
    there = listing(name.repo, name.revision, "model")
    if name.part:
        check(
            name.part in there.files,
            f"{name} is not there, expected one of {', '.join(there.files[:MOST_SHOWN])}",
        )
        return _download(name, name.part, there, "model")
    # Of a folder below, and of other programs, nothing is read.
    files = [x for x in there.files if "/" not in x and x.endswith(MODEL_FILES)]
    # Mistral's models come twice: as their own programs read them, and as transformers does.
    files = [x for x in files if not x.startswith("consolidated")]
    check(
        "config.json" in files or "adapter_config.json" in files,
        f"{name} has no config.json, expected a model with weights as safetensors, or the name of "
        f"a .gguf file in it ({name._replace(part='FILE.gguf')})",
    )
    places = [_download(name, file, there, "model") for file in files]
    return places[0].parent


# --- the hub --------------------------------------------------------------------------------------


@cache
def listing(repo: str, revision: str, kind: Kind) -> Listing:
    """What the hub has now; asked once in a process, so that all of a run reads one commit."""
    noted = _noted(repo, revision, kind)
    # A commit never changes: nothing is to be asked of one that is known.
    if noted is not None and COMMIT.fullmatch(revision):
        return noted
    from huggingface_hub import HfApi

    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    name = HubName(repo, "", revision)
    try:
        info = ask(repo, revision=revision or None)
    except Exception as error:
        if noted is not None and _is_unreachable(error):
            log.warning("%s: the hub cannot be reached: read as of commit %s", name, noted.commit)
            return noted
        raise InputError(_why_not(name, error, kind)) from None
    log.warning("%s is read at commit %s", name, info.sha)
    found = Listing(str(info.sha), tuple(sorted(x.rfilename for x in info.siblings or ())))
    for known_as in {revision, found.commit}:
        _note(repo, known_as, kind, found)
    return found


def _download(name: HubName, file: str, there: Listing, kind: Kind) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(name.repo, file, repo_type=kind, revision=there.commit)
    except Exception as error:
        raise InputError(_why_not(name, error, kind, file)) from None
    return Path(found)


def _is_unreachable(error: Exception) -> bool:
    """Whether nobody answered, and not that the answer was no."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return not isinstance(error, HfHubHTTPError | HFValidationError)


def _why_not(name: HubName, error: Exception, kind: Kind, file: str = "") -> str:
    from huggingface_hub import constants, errors

    what = "data set" if kind == "dataset" else "model"
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name}: the {what} is given to those who have agreed to its terms: agree at "
            f"{constants.ENDPOINT}, and give your token (hf auth login, or HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: the {what} has no revision {name.revision}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: the hub has no such {what}, or shows it to others only: expected "
            "hf://OWNER/NAME of a public one, or a token (hf auth login, or HF_TOKEN)"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"{name}: {constants.ENDPOINT} answers {said}"
    if isinstance(error, errors.HFValidationError):
        return f"{name}: {said}"
    lacking = f"{file} of it" if file else "it"
    return (
        f"{name}: {constants.ENDPOINT} cannot be reached, and {lacking} is not in "
        f"{constants.HF_HUB_CACHE} ({type(error).__name__}: {said}): fetch it where there is a "
        "network, or give a file or folder"
    )


def _note_path(repo: str, revision: str, kind: Kind) -> Path:
    from huggingface_hub import constants

    name = f"{kind}s--{repo}@{revision or 'main'}".replace("/", "--")
    return Path(constants.HF_HUB_CACHE) / ".rlhf_jax" / f"{name}.json"


def _note(repo: str, revision: str, kind: Kind, found: Listing) -> None:
    path = _note_path(repo, revision, kind)
    # Whole or not at all, as other processes may read it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):  # a cache that is read-only serves those that have a network
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(found._asdict()), encoding="utf-8")
        temporary.replace(path)


def _noted(repo: str, revision: str, kind: Kind) -> Listing | None:
    """What the hub said when it was last asked, or None."""
    path = _note_path(repo, revision, kind)
    if not path.is_file():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Listing(value["commit"], tuple(value["files"]))
