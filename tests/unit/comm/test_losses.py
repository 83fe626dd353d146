"""Ranks that die, as far as no MPI is needed: what can be survived, and what waits for MPI to let go of it."""

from __future__ import annotations

import pytest

from fedsim.comm.losses import Abandoned, why_not_survivable

FLAG = {"OMPI_MCA_mpi_ft_enable": "1"}


@pytest.mark.parametrize(
    ("vendor", "environ", "reason"),
    [
        (("Open MPI", (5, 0, 11)), FLAG, ""),
        (("Open MPI", (5, 0, 11)), {"OMPI_MCA_mpi_ft_enable": "true"}, ""),
        (("Open MPI", (5, 0, 11)), {}, "--with-ft ulfm"),
        (("Open MPI", (5, 0, 11)), {"OMPI_MCA_mpi_ft_enable": "0"}, "--with-ft ulfm"),
        (("Open MPI", (4, 1, 6)), FLAG, "Open MPI 5 or later"),
        (("MPICH", (5, 0, 2)), FLAG, "Open MPI 5 or later"),
    ],
)
def test_what_can_be_survived(vendor: tuple[str, tuple[int, ...]], environ: dict[str, str], reason: str) -> None:
    said = why_not_survivable(vendor, "the library", environ)
    assert (said == "") == (reason == "") and reason in said


class Request:
    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers

    def Test(self) -> bool:
        return self.answers.pop(0)


def test_memory_is_kept_until_its_request_has_ended() -> None:
    abandoned = Abandoned()
    abandoned.take([Request([False, False, True]), Request([True])], memory=bytearray(8))
    assert len(abandoned) == 1
    abandoned.sweep()
    assert len(abandoned) == 1
    abandoned.sweep()
    assert len(abandoned) == 0
