"""The cost of a Newton step, behind ``ncg-cuda bench step``: time, memory and tracing, in units of one gradient.

``problems`` builds the models, ``designs`` the ways to take a step, ``reference_design`` the published one's.
``worker`` measures one configuration in a process of its own, ``timing`` splits its time, ``memory`` reads its memory.
``command`` starts the workers; ``records``, ``targets``, ``report`` and ``plot`` show what they found. Importing the
package does not import TensorFlow.
"""

from __future__ import annotations
