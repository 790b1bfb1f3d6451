"""The integers of ``tables.layout`` as Triton sees them.

A kernel imports them from here by name. Triton puts the values of a kernel's own globals into the
key under which it keeps compiled code on disk, but not what a kernel reads through a module, as
``layout.CLOCK``: after a change of the layout it would load kernels compiled for the old one.
"""

from typing import TYPE_CHECKING

import triton.language as tl

from fused_sched.tables import layout

if TYPE_CHECKING:

    def __getattr__(name: str) -> tl.constexpr:
        """Any name: mypy does not see what the loop fills in."""


# Filled by a loop: the key holds names and values of the importing module's globals, wherever they
# come from.
for _name, _value in vars(layout).items():
    if type(_value) is int:
        globals()[_name] = tl.constexpr(_value)

THREADS = tl.constexpr(32 * layout.WARPS)
TURN = tl.constexpr(1 << layout.TURN_BITS)
