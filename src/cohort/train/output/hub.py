"""Models to the Hugging Face hub."""

from __future__ import annotations

import logging
from pathlib import Path

from cohort.config import TrainingConfig
from cohort.train.output.export import model_files
from cohort.types import UserError

log = logging.getLogger("cohort")

LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token that may write"


def require_token() -> None:
    """Raise UserError where nobody is logged in: before a run, not after it."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(f"pushing to the hub needs a token: {LOG_IN}")


def push(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    message: str = "Upload the model",
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload the model in the folder, and nothing beside it, to `repo` (NAME or OWNER/NAME; made where it is not
    there); returns its address. Raises UserError where the hub refuses or cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # not in __all__

    if token is None:
        require_token()
    names = model_files(folder)
    try:
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        patterns = [*names, "additional_chat_templates/*"]
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=patterns,
            commit_message=message,
            revision=revision,
        )
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a hub repository: {_line(error)}") from error
    except (HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = f". Is it yours? Else {LOG_IN}" if status in (401, 403, 404) else ""
        raise UserError(
            f"{folder} could not be pushed to {repo!r}: {_line(error)}{advice}. The model stays where it is: "
            f"`cohort export {folder} --push {repo}` tries again"
        ) from error
    return str(made)


def push_output(config: TrainingConfig, message: str, private: bool | None = None, **given: str | None) -> str:
    """Upload the model that a run left in output_dir as `hub_model_id` (default: output_dir's name). `given`: token
    and revision."""
    folder = Path(config.output_dir)
    repo = config.hub_model_id or folder.resolve().name
    private = config.hub_private_repo if private is None else private
    address = push(folder, repo, private=private, message=message, **given)
    log.info("pushed to %s", address)
    return address


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
