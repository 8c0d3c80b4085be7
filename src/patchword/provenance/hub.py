"""Find repositories of the Hugging Face hub and their commits, and explain errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from patchword.errors import UserError

Kind = Literal["model", "dataset"]

# The first file that the libraries request. If a repository was downloaded before, the cache has this file.
FIRST_FILE: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts to reach the hub; each attempt times out after ten seconds


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at one commit, or a folder.

    Attributes:
        name: `OWNER/NAME`, or the folder.
        commit: The commit; None for a folder.
        kind: The kind of the repository.
        online: Whether the commit comes from the hub. False if it comes from the cache.
    """

    name: str
    commit: str | None
    kind: Kind
    online: bool = True

    @property
    def commits(self) -> dict[str, str]:
        """The commit by the path of the repository, `datasets/OWNER/NAME` or `OWNER/NAME`. It is empty for a folder.

        Runs record these commits in their results.
        """
        return {} if self.commit is None else {self._path: self.commit}

    @property
    def _path(self) -> str:
        return f"datasets/{self.name}" if self.kind == "dataset" else self.name

    def read(self, address: str, place: str) -> bytes:
        """Returns the content of a file of the repository. Failed connections are retried for half a minute.

        Args:
            address: `hf://datasets/OWNER/NAME@COMMIT/PATH`.
            place: Where the address comes from, for messages.

        Raises:
            FileNotFoundError: If the file does not exist.
            UserError: If it is a file of another repository, or cannot be downloaded.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff  # type: ignore[attr-defined]

        path = address.removeprefix(f"hf://{self._path}@{self.commit}/")
        if path == address or ".." in path:
            raise UserError(
                f"{place}: {address} is no file of {self.name} at {self.commit}: set it to a path in that repository"
            )
        url = hf_hub_url(self.name, path, repo_type=self.kind, revision=self.commit)
        try:
            response = http_backoff("GET", url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
        except RemoteEntryNotFoundError as error:
            raise FileNotFoundError(f"there is no file {path} in {self.name}") from error
        except Exception as error:  # connections raise many kinds of errors
            raise UserError(f"{place} cannot be downloaded ({_words(error)}): try again") from error
        return response.content


def find(name: str, kind: Kind) -> Repository:
    """The folder or hub repository with the name `name`. If the hub cannot be reached, the cache is used.

    A name is `OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, a tag or a commit, or the path of a folder.

    Raises:
        UserError: If the repository or revision does not exist, the user has no access, or the hub cannot be reached
            and the repository is not in the cache.
    """
    # `HfApi().repo_info` gives the commit, too, but it leaves no reference in the cache for later runs without a
    # connection, and it answers for gated repositories whose files cannot be read.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
    from lightning.pytorch.utilities import rank_zero_info

    if Path(name).expanduser().is_dir():
        return Repository(name, None, kind)
    plain, _, revision = name.partition("@")
    revision = revision or constants.DEFAULT_REVISION
    try:
        known = cached(name, kind)
    except HFValidationError as error:
        raise UserError(explain(error, name, kind)) from error
    try:
        _require_answer(plain, kind, revision, waits=() if known else WAITS)
    except Exception as error:
        if known is None:
            raise UserError(explain(error, name, kind)) from error
        rank_zero_info(f"the hub does not answer: {plain} is read from the cache (commit {known.commit})")
        return known
    try:
        path = hf_hub_download(plain, FIRST_FILE[kind], repo_type=kind, revision=revision)
        return Repository(plain, Path(path).parent.name, kind)
    except RemoteEntryNotFoundError as error:  # the commit has no such file
        return Repository(plain, error.response.headers[constants.HUGGINGFACE_HEADER_X_REPO_COMMIT], kind)
    except Exception as error:  # connections raise many kinds of errors
        raise UserError(explain(error, name, kind)) from error


def _require_answer(name: str, kind: Kind, revision: str, waits: Sequence[float]) -> None:
    """Require that the hub answers a request about a repository. "Not found" is also an answer.

    Raises:
        OfflineModeIsEnabled: If HF_HUB_OFFLINE is set.
        ConnectionError: If the hub does not answer, even after waiting for each of `waits` seconds.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for wait in [*waits, None]:
        try:
            get_hf_file_metadata(hf_hub_url(name, FIRST_FILE[kind], repo_type=kind, revision=revision))
            return
        except OfflineModeIsEnabled:
            raise
        except Exception as error:  # connections raise many kinds of errors
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                return
            if wait is None:
                raise ConnectionError from error
            time.sleep(wait)


def cached(name: str, kind: Kind) -> Repository | None:
    """The repository in the cache, at the commit of the last download; None if it is not in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    plain, _, revision = name.partition("@")
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=plain, repo_type=kind)
    revision = revision or constants.DEFAULT_REVISION
    if (folder / "snapshots" / revision).is_dir():
        return Repository(plain, revision, kind, online=False)
    path = folder / "refs" / revision
    return Repository(plain, path.read_text().strip(), kind, online=False) if path.is_file() else None


def explain(error: BaseException, name: str, kind: Kind) -> str:
    """A message on one line that explains an error of the hub's libraries, and what to do."""
    from huggingface_hub import constants, errors

    what = {"model": "model", "dataset": "data set"}[kind]
    plain, _, revision = name.partition("@")
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    known = (errors.HFValidationError, errors.OfflineModeIsEnabled, *absent)
    reason = next((one for one in chain if isinstance(one, known)), chain[-1])
    copy = f"and {name} is not in the cache ({constants.HF_HUB_CACHE})"
    if isinstance(reason, errors.HFValidationError):
        return f"{name} is neither a folder nor a {what} of the hub: write OWNER/NAME or OWNER/NAME@REVISION"
    if isinstance(reason, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{plain}"
        return f"the {what} {name} is gated: ask for access on its page, {page}, and log in with `hf auth login`"
    if isinstance(reason, errors.RepositoryNotFoundError):
        return (
            f"there is no folder {plain}, and the hub has no {what} of that name that you may read: correct the name, "
            "or log in with `hf auth login` if it is private"
        )
    if isinstance(reason, errors.RevisionNotFoundError):
        return f"the {what} {plain} has no revision {revision or 'main'}: name a branch, a tag or a commit of it"
    if isinstance(reason, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, {copy}: unset it to download {name} once, or use a folder"
    if any(isinstance(one, (errors.LocalEntryNotFoundError, ConnectionError)) for one in chain):
        return f"the hub at {constants.ENDPOINT} does not answer ({_words(reason)}), {copy}: try again, or use a folder"
    return f"the {what} {name} cannot be read ({_words(error)})"


def record(*repositories: Repository | None) -> dict[str, str]:
    """The commits of repositories by their paths. None and folders are ignored."""
    return {name: commit for each in repositories if each is not None for name, commit in each.commits.items()}


def commits(*parts: Any) -> dict[str, str]:
    """The commits of all hub repositories that data modules and encoders have read, as in `Repository.commits`.

    They are the attributes `commits` of each of `parts`, of the modules of a network, and of a data module's `data`.
    """
    found: dict[str, str] = {}
    for part in parts:
        inner = part.modules() if isinstance(part, nn.Module) else [part, getattr(part, "data", None)]
        for one in inner:
            found |= getattr(one, "commits", {})
    return dict(sorted(found.items()))


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
