"""Benchmarks of the native core, behind ``ncg-cuda bench kernels``: every operation, and the whole CG iteration.

``sizes`` says what is measured, ``devices`` where and by which clock, ``measure`` how. ``operations`` and ``iteration``
make the contenders, ``yardsticks`` the plain streams they are measured by, ``peers`` other libraries, a file each.
``overhead`` times calls on tiny vectors. ``targets``, ``report``, ``plot`` and ``records`` show the figures,
``command`` ties them together. The package ``step`` is another benchmark, ``ncg-cuda bench step``. Importing the
package imports none of the libraries that are compared.
"""

from __future__ import annotations
