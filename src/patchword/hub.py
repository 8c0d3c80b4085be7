"""Repositories of the Hugging Face hub: the commit that a name means now, and what to do where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from patchword.errors import InputError

Kind = Literal["model", "dataset"]

# What the libraries ask for first: a cache that they have filled has it.
FIRST_FILE: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at one commit, or a folder.

    Attributes:
        name: `OWNER/NAME`, or the folder.
        commit: The commit; None of a folder.
        kind: What it holds.
        online: Whether the hub has said so; else its cache has.
    """

    name: str
    commit: str | None
    kind: Kind
    online: bool = True

    @property
    def commits(self) -> dict[str, str]:
        """The commit by the name that the hub's addresses have, `datasets/OWNER/NAME` or `OWNER/NAME`; a run's record.

        Empty of a folder.
        """
        if self.commit is None:
            return {}
        return {self._path: self.commit}

    @property
    def _path(self) -> str:
        return f"datasets/{self.name}" if self.kind == "dataset" else self.name

    def read(self, address: str, place: str) -> bytes:
        """What a file of it holds; where a connection fails, it is tried again for half a minute.

        Args:
            address: `hf://datasets/OWNER/NAME@COMMIT/PATH`.
            place: What asks for it, for messages.

        Raises:
            FileNotFoundError: If there is no such file.
            InputError: If it is a file of another repository, or cannot be had.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        path = address.removeprefix(f"hf://{self._path}@{self.commit}/")
        if path == address or ".." in path:
            raise InputError(f"{place}: {address} is no file of {self.name} at {self.commit}: give a path inside it")
        url = hf_hub_url(self.name, path, repo_type=self.kind, revision=self.commit)
        try:
            response = http_backoff("GET", url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
        except RemoteEntryNotFoundError as error:
            raise FileNotFoundError(f"there is no file {path} in {self.name}") from error
        except Exception as error:  # of any kind of connection
            raise InputError(f"{place} cannot be had ({_words(error)}): try again") from error
        return response.content


def find(name: str, kind: Kind) -> Repository:
    """The repository that `name` means now; what is in the cache if the hub cannot be reached.

    Args:
        name: `OWNER/NAME`, or `OWNER/NAME@REVISION` for a branch, a tag or a commit. A folder is taken as it is.
        kind: What it holds.

    Raises:
        InputError: If there is no such repository or revision, it may not be read, or the hub cannot be reached and
            the cache does not have it.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
    from lightning.pytorch.utilities import rank_zero_info

    if Path(name).expanduser().is_dir():
        return Repository(name, None, kind)
    plain, _, revision = name.partition("@")
    revision = revision or constants.DEFAULT_REVISION
    try:
        if not _answers(plain, kind, revision) and (known := cached(name, kind)) is not None:
            rank_zero_info(f"the hub does not answer: {plain} is read from the cache, as of commit {known.commit}")
            return known
        path = hf_hub_download(plain, FIRST_FILE[kind], repo_type=kind, revision=revision)
        return Repository(plain, Path(path).parent.name, kind)
    except RemoteEntryNotFoundError as error:  # of a commit
        return Repository(plain, error.response.headers[constants.HUGGINGFACE_HEADER_X_REPO_COMMIT], kind)
    except (HFValidationError, OSError) as error:
        raise InputError(explain(error, name, kind)) from error


def _answers(name: str, kind: Kind, revision: str) -> bool:
    """Whether the hub says anything about a repository."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, FIRST_FILE[kind], repo_type=kind, revision=revision))
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # offline, or of any kind of connection
        return False
    return True


def cached(name: str, kind: Kind) -> Repository | None:
    """The repository that `name` meant when the hub was asked last; None if the cache does not know it."""
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
    """In one line, what an error of the hub's libraries means for a repository, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = {"model": "model", "dataset": "data set"}[kind]
    plain, _, revision = name.partition("@")
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    known = (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, OfflineModeIsEnabled)
    reason = next((one for one in chain if isinstance(one, known)), chain[-1])
    copy = f"and {name} is not in the cache ({constants.HF_HUB_CACHE})"
    if isinstance(reason, HFValidationError):
        return f"{name} is neither a folder nor a {what} of the hub: write OWNER/NAME or OWNER/NAME@REVISION"
    if isinstance(reason, GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{plain}"
        return f"the {what} {name} is gated: ask for access on its page, {page}, and log in with `hf auth login`"
    if isinstance(reason, RepositoryNotFoundError):
        return (
            f"there is no folder {plain}, and the hub has no {what} of that name that you may read: correct the name, "
            "or log in with `hf auth login` if it is private"
        )
    if isinstance(reason, RevisionNotFoundError):
        return f"the {what} {plain} has no revision {revision or 'main'}: name a branch, a tag or a commit of it"
    if isinstance(reason, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, {copy}: unset it to download that once, or give a folder"
    if any(isinstance(one, (LocalEntryNotFoundError, ConnectionError)) for one in chain):
        return (
            f"the hub at {constants.ENDPOINT} does not answer ({_words(reason)}), {copy}: try again, or give a folder"
        )
    return f"the {what} {name} cannot be read ({_words(error)})"


def record(*repositories: Repository | None) -> dict[str, str]:
    """Commits by repository; None, and folders, are left out."""
    return {name: commit for each in repositories if each is not None for name, commit in each.commits.items()}


def commits(*parts: Any) -> dict[str, str]:
    """What data modules and encoders have read from the hub: commits by repository, as `Repository.commits` has them.

    Args:
        parts: Objects with an attribute `commits`; of a network, those of all its parts; of data that wrap other
            `data`, those of both.
    """
    found: dict[str, str] = {}
    for part in parts:
        inner = part.modules() if isinstance(part, nn.Module) else [part, getattr(part, "data", None)]
        for one in inner:
            found |= getattr(one, "commits", {})
    return dict(sorted(found.items()))


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
