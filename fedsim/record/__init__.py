"""What a run leaves behind: the record's tables, who writes them, who reads them, and where they came from.

`schema` says what is in a record, `writer` writes one file an attempt, `reader` reads all attempts as one run,
`join` makes one plain file of them, `provenance` collects what a result needs to be believed. Nothing is imported here,
so that `fedsim.record.schema` costs no HDF5.
"""
