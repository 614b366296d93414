"""The memory that this process has freed: the process keeps it for its next tensors.

By default, glibc gives a freed block of the size of a layer's features back to the system. The system hands
out the next block as pages of zeros, one page at a time, when they are first touched:

    default:  | layer 1: new pages | layer 2: new pages | ... | next batch, layer 1: new pages | ...
    kept:     | layer 1: new pages | layer 2: new pages | ... | next batch, layer 1: same pages | ...

Training and evaluation call this module, which does not know torch.
"""

import ctypes
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as in glibc's malloc.h


@cache
def keep_freed_memory() -> None:
    """From now until it ends, this process keeps the memory that it frees, as torch does on CUDA.

    Other C libraries than glibc stay as they are. `benchmarks/RESULTS.md`, sections "step" and "evaluation",
    tells the gain.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)  # no block of its own from the system, which would get it back
        library.mallopt(M_TRIM_THRESHOLD, -1)  # the end of the heap is never given back
