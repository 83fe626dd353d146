"""`python -m fedsim`: the command line, for launchers that start an interpreter (`python -m mpi4py -m fedsim ...`)."""

from fedsim.cli import main

if __name__ == "__main__":
    main()
