"""An exported folder to the Hugging Face hub: one commit that is whole, or nothing.

The token is read where ``huggingface_hub`` keeps it (``HF_TOKEN``, or ``hf auth login``), and
stands in no message.
"""

import os
import re
from pathlib import Path
from typing import Any

from rlhf_jax.errors import InputError, RunError, check

NAME = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
HUB = "https://huggingface.co"
OWN = (".gitattributes", "README.md")
"""What the hub itself puts into a repository, or an export replaces."""


def check_hub(repo: str) -> None:
    """Raise InputError unless a folder can be pushed as ``repo``: asked before any work is done."""
    check(
        NAME.fullmatch(repo) is not None,
        f"--push {repo}: expected OWNER/NAME of a repository on the hub",
    )
    api = _api(repo)
    try:
        who = api.whoami()["name"]
    except Exception as error:
        raise InputError(f"--push {repo}: {_why(api, error)}") from None
    print(f"{who} pushes to {api.endpoint}/{repo}, once the export is written")


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Push a folder's files as one commit; the address of that commit.

    A repository that is not there is made. Raises RunError where files of it would stay that are
    none of the folder's, as somebody would load a mixture, and for whatever the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd

    api = _api(repo)
    files = sorted(path for path in folder.iterdir())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        others = sorted(set(api.list_repo_files(repo)) - {*(path.name for path in files), *OWN})
        if not others:
            # Not upload_folder, which may divide a folder into several commits.
            return api.create_commit(
                repo,
                [CommitOperationAdd(path.name, path) for path in files],
                commit_message="Export of rlhf_jax",
            ).commit_url
    except Exception as error:
        raise RunError(
            f"--push {repo}: {_why(api, error)}; the export is whole in {folder}"
        ) from None
    raise RunError(
        f"--push {repo}: the repository holds {', '.join(others[:5])}, which would stay beside the "
        f"files of this export: give another name, or remove them; the export is whole in {folder}"
    )


def _api(repo: str) -> Any:
    try:
        from huggingface_hub import HfApi, get_token
    except ModuleNotFoundError:
        raise InputError(
            f"--push {repo}: huggingface_hub is not installed (pip install huggingface_hub)"
        ) from None
    token = get_token()
    check(
        bool(token),
        f"--push {repo}: there is no token: set HF_TOKEN to one that may write, or run "
        "hf auth login",
    )
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT", HUB), token=token)


def _why(api: Any, error: Exception) -> str:
    """What the hub said, or that it could not be reached."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    said = " ".join(str(error).split())[:300].replace(api.token, "***")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            return f"{api.endpoint} does not accept the token ({status}), or it may not write there"
        return f"{api.endpoint} refused: {said}"
    if isinstance(error, HTTPError | OSError):
        return f"{api.endpoint} cannot be reached ({type(error).__name__}: {said})"
    return f"huggingface_hub failed ({type(error).__name__}: {said})"
