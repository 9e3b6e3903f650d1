"""Archives from the web: fetched, checked against their published hash, unpacked into place.

Nothing is written outside the folder named, and a half-finished download or folder never gets its final name (`fetch`,
`archives`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meanshifter.data.archives import unpack
from meanshifter.data.fetch import check_digest, fetch_file
from meanshifter.errors import InputError


@dataclass(frozen=True)
class Archive:
    """Where a data set is fetched from, and what must come."""

    url: str
    filename: str
    digest: str
    """algorithm:hex, such as md5:6cd6…, as published."""
    published_by: str
    """Who lists the digest."""
    folder: str
    """The folder inside the archive that is kept; its last part is its name afterwards."""


def fetch_and_unpack(archive: Archive, root: str | Path) -> Path:
    """Download into `root`, check, unpack, and remove the archive; returns the data set's folder.

    An archive that already lies in `root` under its own name is checked and used.

    Raises:
        InputError: the folder exists, the address does not answer, the hash differs, or a member points outside.
    """
    root = Path(root)
    target = root / PurePosixPath(archive.folder).name
    if target.exists():
        raise InputError(f"{target}: exists already; use it, or remove it to download it again")
    root.mkdir(parents=True, exist_ok=True)
    file = root / archive.filename
    if file.exists():
        check_digest(file, archive.digest, archive.url, archive.published_by)
    else:
        fetch_file(archive.url, file, archive.digest, archive.published_by)
    unpack(file, archive.folder, target)
    file.unlink()
    return target
