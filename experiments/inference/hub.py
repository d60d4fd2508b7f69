"""Uploads the folder of a shared network to the Hugging Face hub, or to the server that HF_ENDPOINT names."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from experiments.command_line.process import RunError


def push(folder: Path, files: Sequence[str], repository: str, private: bool) -> str:
    """Upload the named files of a folder as one commit, and return the address of the repository.

    Args:
        repository: USER/NAME; it is made if there is none.
        private: whether a new repository is visible to its owner alone.

    Raises:
        RunError: there is no login, no such account, or no connection; one line says which.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Network, configuration and model card, written by Graft",
        )
    except LocalTokenNotFoundError:
        raise RunError(f"--push-to-hub {repository}: not logged in; run: hf auth login") from None
    except HFValidationError as error:
        raise RunError(f"--push-to-hub {repository}: {one_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; run: hf auth login" if status in (401, 403) else ""
        raise RunError(
            f"--push-to-hub {repository}: {api.endpoint} answers {status}: {one_line(error)}{hint}"
        ) from None
    except Exception as error:  # which HTTP library it uses, and thus what is raised, depends on its version
        raise RunError(f"--push-to-hub {repository}: {api.endpoint} cannot be reached: {one_line(error)}") from None
    return str(made)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
