"""Is a folder on a file system that SQLite's locks and shared memory can be trusted on?"""

from __future__ import annotations

import os
from pathlib import Path

#: File systems of other machines, and those of user space. SQLite's WAL needs shared memory and
#: POSIX locks that work; https://www.sqlite.org/wal.html says so of network file systems.
REFUSED_TYPES = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs"),
        *("beegfs", "orangefs", "ocfs2", "gfs2", "cpfs", "alinas", "davfs"),
    )
)


def file_system_of(folder: Path, mountinfo: str) -> tuple[str, str]:
    """Type and mount point of the file system that holds ``folder`` (``mountinfo``: see proc(5))."""
    real = os.path.realpath(folder)
    best = ("unknown", "")
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        point = before.split()[4].encode().decode("unicode_escape")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[1]):  # a later mount hides an earlier one
            best = (after.split()[0], point)
    return best


def why_refused(folder: Path) -> str | None:
    """A sentence when ``folder`` is on a network or FUSE mount; None when it can be used."""
    mountinfo = Path("/proc/self/mountinfo")
    if not mountinfo.exists():
        return None
    kind, point = file_system_of(folder, mountinfo.read_text(encoding="utf-8"))
    if kind in REFUSED_TYPES or kind == "fuse" or kind.startswith("fuse.") or kind == "fuseblk":
        return (
            f"{folder} is on {point}, a {kind} mount: a database there can be damaged. "
            "Give --state-dir a folder on a local disk, or --database-url a PostgreSQL server"
        )
    return None
