"""When and where: which client trains from which version, in which order its update is applied, on which worker.

Pure: the state of a `Schedule` changes by the events it is given and by keyed draws, by nothing else.
"""
