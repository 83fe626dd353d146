"""Wires the rooms together: the server's loop, the worker behind a transport, replay, and `run`."""
