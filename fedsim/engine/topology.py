"""Where a rank sits: the cores that it may use, the memory nodes (NUMA) that these are in, its place on its host.

The record says it, as it was before ranks keep to cores (`fedsim.comm.cores`). What a worker gets to do does not depend
on where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedsim.affinity import allowed

_NODES = Path("/sys/devices/system/node")


def cores() -> str:
    """The cores that this process may use, as "0-3,8"; empty where the system does not tell."""
    return ranges(allowed())


def memory_nodes(used: str, folder: Path = _NODES) -> str:
    """The memory nodes that these cores are in, as "0,1"; empty where the system does not tell."""
    wanted, found = set(numbers(used)), []
    for path in folder.glob("node[0-9]*/cpulist"):
        try:
            own = numbers(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if wanted.intersection(own):
            found.append(int(path.parent.name.removeprefix("node")))
    return ranges(found)


def local_ranks(hosts: Sequence[str]) -> list[int]:
    """What number each rank has among the ranks of its host.

    >>> local_ranks(["n1", "n1", "n2", "n1", "n2"])
    [0, 1, 0, 2, 1]
    """
    counts: dict[str, int] = {}
    found: list[int] = []
    for host in hosts:
        counts[host] = counts.get(host, -1) + 1
        found.append(counts[host])
    return found


def ranges(found: Iterable[int]) -> str:
    """Whole numbers as ranges.

    >>> ranges({8, 0, 1, 2, 3, 10, 11})
    '0-3,8,10-11'
    """
    parts: list[tuple[int, int]] = []
    for number in sorted(found):
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def numbers(text: str) -> list[int]:
    """The numbers in such ranges.

    >>> numbers("0-3,8")
    [0, 1, 2, 3, 8]
    """
    found: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return found
