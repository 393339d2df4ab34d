"""From a run's folder to the Hub: first a plan of what would be sent, then the push itself, which can be resumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, RepoUrl, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from .cards import TAGS
from .facts import EVALUATION
from .staging import STAGES, stage

WHATS = tuple(STAGES)

# What can run code when it is opened, or is no weights format that the Hub scans: only safetensors leave the house.
REFUSED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack", ".npy", ".npz")


class PushError(ValueError):
    """A push that cannot be made, or that was broken off; says why and what to do."""


@dataclass(frozen=True)
class PlannedFile:
    """
    One file of a push.

    Args:
        path (`str`): Its place in the repo.
        size (`int`): In bytes.
        state (`str`): `new`, `changed` or `same`, beside the repo as it is.
    """

    path: str
    size: int
    state: str = "new"


@dataclass(frozen=True)
class PushPlan:
    """
    What a push would do. It holds no token.

    Args:
        what (`str`): `backbone`, `dual_encoder`, `dataset` or `evaluation`.
        repo_id, repo_type (`str`): The repo.
        folder (`Path`): Where the files lie ready to be looked at.
        files (`list[PlannedFile]`): All of them.
        removed (`list[str]`): Files of the repo that an older push left and this one replaces by others.
        missing (`list[str]`): What the repo would need and the run does not have.
        problems (`list[str]`): Further reasons why it cannot be pushed.
        notes (`list[str]`): What is good to know.
        private (`bool`): Whether a new repo is made private; an existing one is left as it is.
        exists (`bool`): Whether the repo was found.
        revision (`str`, *optional*): The branch to commit to, made from main where it is not there.
        create_pr (`bool`): Whether to open a pull request instead of committing.
    """

    what: str
    repo_id: str
    repo_type: str
    folder: Path
    files: list[PlannedFile] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    private: bool = True
    exists: bool = False
    revision: str | None = None
    create_pr: bool = False

    @property
    def to_send(self) -> list[PlannedFile]:
        """The files that the repo does not have as they are."""
        return [file for file in self.files if file.state != "same"]

    @property
    def ready(self) -> bool:
        """Whether nothing stands in the way."""
        return not (self.missing or self.problems)

    def __str__(self) -> str:
        visibility = "" if self.exists else ", private" if self.private else ", PUBLIC"
        where = "as a pull request" if self.create_pr else f"on {self.revision or 'main'}"
        repo = f"{self.repo_type} {self.repo_id} ({'existing' if self.exists else 'new'}{visibility}), {where}"
        lines = [f"{self.what} → {repo}", f"  prepared in {self.folder}"]
        lines += [f"  {file.state:<8} {readable(file.size):>9}  {file.path}" for file in self.files]
        lines += [f"  removed             {path}" for path in self.removed]
        lines += [f"  MISSING  {missing}" for missing in self.missing]
        lines += [f"  PROBLEM  {problem}" for problem in self.problems]
        lines += [f"  note     {note}" for note in self.notes]
        size = readable(sum(file.size for file in self.to_send))
        return "\n".join([*lines, f"  {len(self.to_send)} of {len(self.files)} files to send, {size}"])


def plan_push(
    run_folder: str | os.PathLike[str],
    repo_id: str,
    what: str = "backbone",
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    evaluation: str | os.PathLike[str] | None = None,
    replace_other: bool = False,
    token: str | None = None,
) -> PushPlan:
    """
    Prepare a push and say what it would do. Nothing is sent.

    The files are prepared under `hub/` in the run's folder, so that they can be looked at, cards included. The repo is
    asked what it has already.

    Args:
        run_folder (`str` or path):
            A run's folder.
        repo_id (`str`):
            `ORG/NAME` on the Hub.
        what (`str`, *optional*, defaults to `"backbone"`):
            `"backbone"` or `"dual_encoder"` (a model repo), `"dataset"` (a dataset repo) or `"evaluation"` (the folder
            `evaluation/` of the model repo).
        private (`bool`, *optional*, defaults to `True`):
            Whether a new repo is private. With `True`, an existing public repo is refused.
        revision (`str`, *optional*):
            Branch to commit to; made from main where it does not exist.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request. Not together with `revision`.
        evaluation (`str` or path, *optional*):
            The output folder of `pacl evaluate` on this run's models; by default `evaluation/` in the run's folder.
        replace_other (`bool`, *optional*, defaults to `False`):
            Whether to write into a repo that holds something else.
        token (`str`, *optional*):
            By default the one that `hf auth login` has stored, or `HF_TOKEN`.

    Raises:
        [`PushError`]: there is no such run, or an argument is wrong.

    Example:

    ```python
    plan = plan_push("runs/built_in", "me/pacl-resnet", "backbone")
    print(plan)
    push(plan)
    ```
    """
    run = Path(run_folder)
    _check_arguments(run, repo_id, what, revision, create_pr)
    folder = run / "hub" / what
    weights = [] if what == EVALUATION else refused_files(run / what)
    try:
        missing = [] if weights else stage(what, run, folder, repo_id, Path(evaluation) if evaluation else None)
    except ValueError as error:
        raise PushError(f"{what}: {error}") from error
    local = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() and not weights else []
    plan = PushPlan(
        what,
        repo_id,
        repo_type="dataset" if what == "dataset" else "model",
        folder=folder,
        files=[PlannedFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in local],
        missing=missing,
        problems=[f"{name}: only safetensors weights are pushed; convert or remove it" for name in weights],
        private=private,
        revision=revision,
        create_pr=create_pr,
    )
    return _compare(plan, clean_token(token), replace_other)


def push(plan: PushPlan, *, token: str | None = None) -> str:
    """
    Do what a plan says. After a lost connection, plan and push again: what has arrived is not sent twice.

    Args:
        plan ([`PushPlan`]):
            From [`plan_push`].
        token (`str`, *optional*):
            By default the one that `hf auth login` has stored, or `HF_TOKEN`. It is not shown or kept anywhere.

    Returns:
        `str`: the address of the commit, or of the pull request.

    Raises:
        [`PushError`]: the plan has gaps, the Hub refused, or the connection was lost.
    """
    if not plan.ready:
        raise PushError(f"{plan.what} cannot be pushed to {plan.repo_id}: {'; '.join(plan.missing + plan.problems)}")
    token = clean_token(token)
    api = HfApi(token=token)
    try:
        _prepare_repo(api, plan)
        sent = api.upload_folder(
            repo_id=plan.repo_id,
            repo_type=plan.repo_type,
            folder_path=plan.folder,
            commit_message=f"PACL: {plan.what.replace('_', ' ')}",
            revision=plan.revision,
            create_pr=plan.create_pr,
            allow_patterns=[_literally(file.path) for file in plan.files],
            delete_patterns=[_literally(path) for path in plan.removed] or None,
        )
    except PushError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the operating system's
        raise PushError(_explain(error, plan, token)) from None
    return str(sent.pr_url or sent.commit_url)


def refused_files(folder: Path) -> list[str]:
    """Files of a folder that may hold weights in another format than safetensors."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    return [name for name in names if name.lower().endswith(REFUSED)]


def clean_token(token: str | None) -> str | None:
    """
    The token without blanks around it.

    Raises:
        [`PushError`]: it holds characters that no token has. HTTP libraries would show it in their own error.
    """
    token = (token or get_token() or "").strip()
    if not token:
        return None
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise PushError("the token holds blanks or other characters that no token has; copy it again")
    return token


def readable(size: int) -> str:
    """Bytes as people read them."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _check_arguments(run: Path, repo_id: str, what: str, revision: str | None, create_pr: bool) -> None:
    if what not in WHATS:
        raise PushError(f"what must be one of {', '.join(WHATS)}, got {what!r}")
    if not (run / "recipe.yaml").is_file():
        raise PushError(f"{run} is no run's folder: it holds no recipe.yaml")
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise PushError(f"repo_id: {error}") from None
    if "/" not in repo_id:
        raise PushError(f"repo_id: ORG/NAME is expected, got {repo_id!r}")
    if create_pr and revision:
        raise PushError("create_pr and revision exclude each other: a pull request is opened against main")


# Beside the repo as it is --------------------------------------------------------------------------------------------


def _compare(plan: PushPlan, token: str | None, replace_other: bool) -> PushPlan:
    """The plan with each file's state, and with what speaks against it."""
    api = HfApi(token=token or False)
    try:
        info = api.repo_info(plan.repo_id, repo_type=plan.repo_type)
        there = _tree(api, plan)
    except RepositoryNotFoundError:
        return plan
    except Exception as error:
        note = f"the Hub could not be asked what it has ({_explain(error, plan, token)}): every file counts as new"
        return replace(plan, notes=[*plan.notes, note])
    problems = list(plan.problems)
    if plan.private and not info.private:
        problems.append(f"{plan.repo_id} is public: say --public (private=False) if that is meant")
    others = [path for path in there if path != ".gitattributes"]
    tag = TAGS.get(plan.what)
    if tag and others and tag not in (getattr(info, "tags", None) or []) and not replace_other:
        problems.append(
            f"{plan.repo_id} is taken: it holds {len(others)} files and no {plan.what} of PACL; choose another name, "
            "or say --replace_other (replace_other=True) to write into it"
        )
    files = [replace(file, state=_state(plan.folder / file.path, there.get(file.path))) for file in plan.files]
    ours = {file.path for file in files}
    removed = [path for path in there if _is_generated(path, plan.what) and path not in ours]
    return replace(plan, exists=True, files=files, removed=removed, problems=problems)


def _tree(api: HfApi, plan: PushPlan) -> dict[str, RepoFile]:
    def tree(revision: str | None) -> dict[str, RepoFile]:
        entries = api.list_repo_tree(plan.repo_id, recursive=True, revision=revision, repo_type=plan.repo_type)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    try:
        return tree(plan.revision)
    except RevisionNotFoundError:
        return tree(None)  # the branch will be made from main


def _state(path: Path, there: RepoFile | None) -> str:
    if there is None:
        return "new"
    if there.lfs is not None:
        with path.open("rb") as file:
            return "same" if sha_fileobj(file).hex() == there.lfs.sha256 else "changed"
    return "same" if git_hash(path.read_bytes()) == there.blob_id else "changed"


def _is_generated(path: str, what: str) -> bool:
    """Whether another number of shards would leave this file behind, to be read together with the new ones."""
    if what == "dataset":
        return PurePosixPath(path).match("data/train-*.parquet")
    return what != EVALUATION and PurePosixPath(path).match("*.safetensors*") and "/" not in path


# The push itself -----------------------------------------------------------------------------------------------------


def _prepare_repo(api: HfApi, plan: PushPlan) -> None:
    made: RepoUrl = api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=plan.private, exist_ok=True)
    if plan.private and not api.repo_info(made.repo_id, repo_type=plan.repo_type).private:
        raise PushError(f"{plan.repo_id} is public: say --public (private=False) if that is meant")
    if plan.revision and not plan.revision.startswith("refs/"):
        api.create_branch(plan.repo_id, branch=plan.revision, repo_type=plan.repo_type, exist_ok=True)


def _literally(path: str) -> str:
    """The pattern that matches this path and no other."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _explain(error: Exception, plan: PushPlan, token: str | None) -> str:
    """One line for people: what happened, and what to do. Never the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        reason = "the Hub does not accept the token; sign in with hf auth login or set HF_TOKEN"
    elif status == 403:
        reason = f"the token may not write to {plan.repo_id}; choose another name, or a token with the right to write"
    elif _is_network(error):
        reason = f"the connection to {constants.ENDPOINT} was lost; push again, what has arrived is not sent twice"
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return reason.replace(token, "…") if token else reason


def _is_network(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a connection that failed and no answer of the Hub."""
    while error is not None:
        # The client's HTTP library has changed its name before; what it calls a failed connection has not.
        if isinstance(error, ConnectionError) or "TransportError" in [base.__name__ for base in type(error).__mro__]:
            return True
        error = error.__cause__
    return False


def plan_pushes(run_folder: Any, repo_id: str, what: Sequence[str], **options: Any) -> list[PushPlan]:
    """
    Plan several pushes; arguments as in [`plan_push`].

    A model and a dataset may bear the same name, a backbone and a dual encoder may not: beside a backbone, the dual
    encoder goes to `ORG/NAME-dual-encoder`.
    """
    both = {"backbone", "dual_encoder"} <= set(what)
    names = {each: f"{repo_id}-dual-encoder" if both and each == "dual_encoder" else repo_id for each in what}
    return [plan_push(run_folder, names[each], each, **options) for each in what]
