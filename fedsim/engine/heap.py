"""Python's search for cycles, kept away from what lasts as long as a run.

Libraries, plan and model are a few hundred thousand objects, none of which goes while a run lasts. Each search that
passes through them costs milliseconds, and leaves the core's caches cold: a twentieth of the time of runs of small
models. What a run makes itself is without cycles but for errors, so the search may be rare.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 50_000  # objects more than have gone, at which the youngest are searched; a group makes Python's own 700


@contextmanager
def settled_heap() -> Iterator[None]:
    """What there is now is not searched inside, and what comes is searched less often; afterwards all is as before.

    Nothing is changed where somebody has frozen something, or has turned the search off.
    """
    before = gc.get_threshold()
    if gc.get_freeze_count() or not gc.isenabled() or not before[0]:
        yield
        return
    gc.freeze()
    gc.set_threshold(_YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
