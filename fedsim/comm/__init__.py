"""What carries tasks, versions and updates between the server and its workers.

`transport` is the interface, `inline` keeps it inside one process, `mpi` spans ranks; `wire` is how messages look
as bytes, `faults` makes trouble on purpose.
"""
