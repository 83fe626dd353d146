"""placeholder being written"""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
@dataclass(frozen=True)
class World:
    rank: int
    size: int
    comm: Any
