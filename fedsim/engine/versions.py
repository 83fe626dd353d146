"""The versions that someone still needs: in memory up to a bound, beyond it in a scratch file.

Where versions travel in 16 bits a value they are kept so: what clients get is the version, whoever asks for it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

from fedsim.compression.halves import packed, unpacked
from fedsim.config import HalfForm
from fedsim.errors import ConfigError, RecordError
from fedsim.types import Float32, Row


class VersionStore:
    """Counts who needs a version and lets it go with the last. At most `bound_bytes` (or one version) stay in memory.

    The scratch file is unlinked as soon as it is open: it vanishes with the process, however that ends.
    """

    def __init__(
        self, n_parameters: int, bound_bytes: int, scratch_dir: Path | None = None, form: HalfForm = "float32"
    ) -> None:
        self.n_parameters = n_parameters
        self._form = form
        self._type = np.dtype(np.float32 if form == "float32" else np.uint16)
        self._row_bytes = self._type.itemsize * n_parameters
        self._n_in_memory = max(1, bound_bytes // self._row_bytes)
        self._memory: dict[int, Row] = {}
        self._slots: dict[int, int] = {}
        self._free_slots: list[int] = []
        self._users: dict[int, int] = {}
        self._scratch_dir = scratch_dir
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, version: int) -> bool:
        return version in self._users

    @property
    def n_spilled(self) -> int:
        """Versions that lie in the scratch file."""
        return len(self._slots)

    def add(self, version: int, vector_P: Float32, n: int = 1) -> None:
        """Takes a version over, with one user, whoever adds it, until it calls `release`; or with `n`.

        Raises:
            ConfigError: it has a value beyond the range of what it is to be sent in.
        """
        self._users[version] = n
        self._memory[version] = self._rounded(version, vector_P)
        while len(self._memory) > self._n_in_memory:
            self._spill(next(iter(self._memory)))  # the oldest: likely the one needed last is not known cheaply

    def retain(self, version: int, n: int = 1) -> None:
        """One more user, or `n`."""
        self._users[version] += n

    def release(self, version: int, n: int = 1) -> bool:
        """`n` users less; true if they were the last and the version is gone."""
        self._users[version] -= n
        if self._users[version]:
            return False
        del self._users[version]
        if self._memory.pop(version, None) is None:
            self._free_slots.append(self._slots.pop(version))
        return True

    def get(self, version: int) -> Float32:
        """The flat vector (P,) float32, read-only; read back from the scratch file if it lies there."""
        vector_P = received(self.as_sent(version), self._form)
        vector_P.flags.writeable = False
        return vector_P

    def as_sent(self, version: int) -> Row:
        """The same as it travels; `received` makes float32 of it."""
        vector_P = self._memory.get(version)
        if vector_P is None:
            vector_P = self._read(self._slots[version] * self._row_bytes)
        return vector_P

    def close(self) -> None:
        """Gives the scratch file back to the system."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _rounded(self, version: int, vector_P: Float32) -> Row:
        if self._form == "float32":
            return vector_P
        try:
            half_P = packed(vector_P, self._form)
        except OverflowError as error:
            raise ConfigError(
                f"compression.versions: version {version}: {error}; allowed: bfloat16, which has float32's range, or "
                "float32"
            ) from None
        half_P.flags.writeable = False
        return half_P

    def _read(self, offset: int) -> Row:
        assert self._file is not None
        vector_P = np.empty(self.n_parameters, dtype=self._type)
        view = vector_P.view(np.uint8).data
        while view:  # one call moves less than 2 GiB
            n_read = os.preadv(self._file, [view], offset)
            assert n_read, "the scratch file is shorter than what was written to it"
            view, offset = view[n_read:], offset + n_read
        vector_P.flags.writeable = False
        return vector_P

    def _spill(self, version: int) -> None:
        try:
            self._write(version)
        except OSError as error:
            raise RecordError(
                f"{self._scratch_dir or tempfile.gettempdir()}: no room for versions that do not fit into memory: "
                f"{error.strerror} (memory.server_versions_bytes allows more of them in memory)"
            ) from None

    def _write(self, version: int) -> None:
        if self._file is None:
            self._file, name = tempfile.mkstemp(prefix="versions-", dir=self._scratch_dir)
            with contextlib.suppress(OSError):
                os.unlink(name)
        slot = self._free_slots.pop() if self._free_slots else len(self._slots)
        view = self._memory[version].view(np.uint8).data
        offset = slot * self._row_bytes
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written
        self._slots[version] = slot  # before it leaves memory: a checkpoint may be reading it in another thread
        del self._memory[version]


def received(vector_P: Row, form: HalfForm) -> Float32:
    """A version as it travels, in float32 (P,)."""
    return vector_P if form == "float32" else unpacked(vector_P, form)
