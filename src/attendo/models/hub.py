"""The Hugging Face Hub, or its cache alone where the Hub is out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """Keep the Hub's client from the network while the Hub does not answer: it would try for a minute.

    Yields:
        Why the Hub is out of reach; "" if it answers.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if offline else _silent()
    constants.HF_HUB_OFFLINE = bool(why)
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = offline


def _silent() -> str:
    """Return why the Hub does not answer in the time that its client gives to one try; any answer is one."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - the HTTP client, and so its exceptions, differ between versions
        return str(error).strip() or type(error).__name__
    return ""
