"""The engine's twin: a model of the engine itself, fitted to measured runs, and asked about machines one does not have.

`model` is the twin, a discrete-event simulation; `pingpong` measures messages; `measure` runs the engine, fits the twin
and sets the two beside each other; `forecast` asks it about 64 to 65,536 ranks.
"""
