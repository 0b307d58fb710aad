"""How much of the node's memory belongs to this pod. What the accelerator has is `hardware`'s."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
_LIMITS: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Of cgroup v2 and v1, as a container sees its own."""


def host_memory_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the container's memory limit, or the machine's memory where there is none or a larger one."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [path.read_text().strip() for name in _LIMITS if (path := cgroups / name).is_file()]
    return min([machine, *(int(text) for text in texts if text.isdecimal())])
