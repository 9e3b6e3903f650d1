"""What several commands say of the same argument."""

from __future__ import annotations

WHOLE_MODEL = "model or run folder, Hub id, published name, or another tool's .pth"
"""Where the model itself is needed."""
MODEL = f"{WHOLE_MODEL}; or a folder that `meanshifter export` wrote"
"""Where reading images is enough."""
