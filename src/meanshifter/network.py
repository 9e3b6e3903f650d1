"""Whether a server answers, asked once and shortly before libraries ask it again and again for minutes."""

from __future__ import annotations

from threading import Thread
from typing import Final

from huggingface_hub import get_session

SECONDS: Final = 6.0
"""How long an answer may take, with the look-up of the name."""


def why_unreachable(url: str, seconds: float = SECONDS) -> str | None:
    """Why the server of `url` gives no answer, in a few words; None where it gives one, whatever it says."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(url, timeout=seconds)
            found.append(None)
        except Exception as error:  # of requests or httpx, as the Hub's client has one or the other
            found.append(" ".join(str(error).split())[:200] or type(error).__name__)

    thread = Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer within {seconds:g} seconds"
