"""Fetch a model from the Hugging Face hub: configuration, tokenizer and safetensors only.

In: ``org/name`` or ``org/name@revision``. Out: the folder in the hub's own cache. No pickles, no code.

Errors: ModelError 3201 (no such repository), 3205 (access must be asked for); EnvironmentFault 5010 (no network).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..core.errors import EnvironmentFault, ModelError
from ..core.files import as_fault

_WANTED: Final = ("*.json", "*.safetensors")
_UNWANTED: Final = ["*/*", "consolidated*", "adapter_*"]


def fetch_from_hub(repository: str, wanted: Sequence[str] = _WANTED) -> Path:
    """Folder with the newest (or the named) revision of ``repository``; what is already here is not sent again.

    ``wanted``: only the files of these patterns.
    """
    from huggingface_hub import errors, snapshot_download

    name, _, revision = repository.partition("@")
    try:
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=_UNWANTED
        )
    except errors.GatedRepoError as error:
        fix = f"ask for access at https://huggingface.co/{name}, then: hf auth login"
        raise ModelError(3205, "model asks for agreement to its terms", where=f"hf:{name}", fix=fix) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        what = str(error).strip().splitlines()[0][:200]
        raise ModelError(3201, "no such model on the hub", where=f"hf:{repository}", expected=what) from error
    except OSError as error:
        raise as_fault(error) or _no_network(repository, error) from error
    except (errors.HfHubHTTPError, RuntimeError, ValueError) as error:
        raise _no_network(repository, error) from error
    return Path(found)


def _no_network(repository: str, error: Exception) -> EnvironmentFault:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    fix = "check the network, or give a local folder instead of hf:org/name"
    return EnvironmentFault(5010, "cannot reach the hub", where=f"hf:{repository}", expected=reason, fix=fix)
