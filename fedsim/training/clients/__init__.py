"""What a client does besides minimising its loss: control variates, local layers, a personal model, compression.

A method is a few vector operations before and after local training, which stays what it is; what a client keeps from
task to task is a flat float32 vector at the worker that hosts it (`states`). No torch here.
"""

from __future__ import annotations

from fedsim.training.clients.methods import Method, Received, methods_of, n_state_values
from fedsim.training.clients.states import ClientStates

__all__ = ["ClientStates", "Method", "Received", "methods_of", "n_state_values"]
