"""One chunk of one tensor: load, apply the rule, store.

Note [Wide accesses]
~~~~~~~~~~~~~~~~~~~~
A *vector* is as many elements as 16 bytes hold of a kind's widest array; a thread moves VECTORS of
them at a time. That needs each array to begin at a multiple of a vector. A view of a bucket (DDP,
FSDP2, ZeRO) begins anywhere. Where all arrays of a tensor are equally many elements past such a
multiple, the first chunk does the elements up to the next multiple apart, every chunk begins
there, and all the rest is wide. Where they are not, consecutive threads move consecutive elements.
"""

import triton
import triton.language as tl

from .constants import THREADS

# Elements that a thread moves at a time where accesses are not wide: more would be spilled.
NARROW = tl.constexpr(4)


@triton.constexpr_function
def _vector(kinds, k):
    """Elements of a vector of kind k."""
    return 128 // max(dtype.primitive_bitwidth for dtype in kinds[k])


@triton.jit
def _phase(address, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """How many elements an address is past a multiple of a vector."""
    BYTES: tl.constexpr = DTYPE.primitive_bitwidth // 8
    return (address & (VECTOR * BYTES - 1)).to(tl.int32) // BYTES


@triton.jit
def _phases_differ(
    addresses, phase, REQUIRED: tl.constexpr, GRAD_DTYPE: tl.constexpr, S: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """0 if every array's phase is that of the param."""
    differ = phase ^ _phase(addresses[1], GRAD_DTYPE, VECTOR)
    for k in tl.static_range(len(addresses) - 2):
        other = phase ^ _phase(addresses[2 + k], S, VECTOR)
        if k < REQUIRED:
            differ |= other
        else:
            differ |= tl.where(addresses[2 + k] != 0, other, 0)
    return differ


@triton.jit
def _pointer(address, start, DTYPE: tl.constexpr, VECTOR: tl.constexpr):
    """The pointer to element ``start``; with a VECTOR it is a multiple of one."""
    pointer = address.to(tl.pointer_type(DTYPE)) + start
    if VECTOR:
        pointer = tl.multiple_of(pointer, VECTOR * DTYPE.primitive_bitwidth // 8)
    return pointer


@triton.jit
def _pointers(
    addresses, start, P: tl.constexpr, GRAD_DTYPE: tl.constexpr, S: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    pointers = (
        _pointer(addresses[0], start, P, VECTOR),
        _pointer(addresses[1], start, GRAD_DTYPE, VECTOR),
    )
    for k in tl.static_range(len(addresses) - 2):
        pointers += (_pointer(addresses[2 + k], start, S, VECTOR),)
    return pointers


@triton.jit
def _counts(addresses, n, REQUIRED: tl.constexpr):
    """How many elements to move of each array: none of a state that the group does not keep."""
    counts = (n, n)
    for k in tl.static_range(len(addresses) - 2):
        if k < REQUIRED:
            counts += (n,)
        else:
            counts += (tl.where(addresses[2 + k] != 0, n, 0),)
    return counts


@triton.jit
def _load(pointers, at, i, counts, REQUIRED: tl.constexpr):
    """Element ``at`` of each array, if i is below its count; 0 of a state that is not kept."""
    values = ()
    for k in tl.static_range(len(pointers)):
        # A mask is one comparison of vectors: `mask & scalar` is no bool in 3.9's interpreter.
        if k < 2 + REQUIRED:
            values += (tl.load(pointers[k] + at, mask=i < counts[k]),)
        else:
            values += (tl.load(pointers[k] + at, mask=i < counts[k], other=0.0),)
    return values


@triton.jit
def _apply(
    values, pointers, at, i, counts, c, inv_scale,
    RULE: tl.constexpr, C: tl.constexpr, UNSCALE: tl.constexpr,
):  # fmt: skip
    """RULE on what was loaded; store what it changes."""
    g = values[1].to(C)
    if UNSCALE:
        g = g * inv_scale
        tl.store(pointers[1] + at, g.to(values[1].dtype), mask=i < counts[1])
    states = ()
    for k in tl.static_range(len(values) - 2):
        states += (values[2 + k].to(C),)
    p, states = RULE(values[0].to(C), g, states, c)
    for k in tl.static_range(len(values) - 2):
        state = states[k].to(values[2 + k].dtype)
        tl.store(pointers[2 + k] + at, state, mask=i < counts[2 + k])
    tl.store(pointers[0] + at, p.to(values[0].dtype), mask=i < counts[0])


@triton.jit
def _update_ends(
    addresses, pointers, skipped, before, whole, after, c, inv_scale,
    RULE: tl.constexpr, REQUIRED: tl.constexpr, C: tl.constexpr, UNSCALE: tl.constexpr,
):  # fmt: skip
    """The elements before the first vector and those after the last: fewer than THREADS.

    ``before`` of the ``skipped`` ones are there, and this chunk's.
    """
    if before + after > 0:
        i = tl.arange(0, THREADS)
        at = tl.where(i < before, i - skipped, whole + i - before)
        counts = _counts(addresses, before + after, REQUIRED)
        values = _load(pointers, at, i, counts, REQUIRED)
        _apply(values, pointers, at, i, counts, c, inv_scale, RULE, C, UNSCALE)


@triton.jit
def _update_narrow(
    addresses, pointers, n, c, inv_scale,
    RULE: tl.constexpr, REQUIRED: tl.constexpr, C: tl.constexpr, UNSCALE: tl.constexpr,
):  # fmt: skip
    """n elements, of which consecutive threads take consecutive ones."""
    WIDTH: tl.constexpr = THREADS * NARROW
    counts = _counts(addresses, n, REQUIRED)
    done = n * 0
    while done < n:
        # A shape of its own: Triton gives loads of one shape one layout, the widest that any has.
        at = done + tl.arange(0, WIDTH)[None, :]
        values = _load(pointers, at, at, counts, REQUIRED)
        _apply(values, pointers, at, at, counts, c, inv_scale, RULE, C, UNSCALE)
        done += WIDTH


@triton.jit
def update_chunk(
    addresses, chunk, size, numel, h, G, carried, carried_on, params, step, scale_ptr,
    COEFFICIENTS: tl.constexpr, RULE: tl.constexpr, REQUIRED: tl.constexpr,
    RECURRENCES: tl.constexpr, KINDS: tl.constexpr, K: tl.constexpr, UNSCALE: tl.constexpr,
    VECTORS: tl.constexpr,
):  # fmt: skip
    """Apply RULE to one chunk of a tensor of kind K, in place. See Note [Wide accesses]."""
    P: tl.constexpr = KINDS[K][0]
    GRAD_DTYPE: tl.constexpr = KINDS[K][1]
    S: tl.constexpr = KINDS[K][2]
    C: tl.constexpr = tl.float64 if P == tl.float64 else tl.float32
    VECTOR: tl.constexpr = _vector(KINDS, K)
    WIDTH: tl.constexpr = THREADS * VECTOR * VECTORS
    phase = _phase(addresses[0], P, VECTOR)
    alike = _phases_differ(addresses, phase, REQUIRED, GRAD_DTYPE, S, VECTOR) == 0
    skipped = tl.where(alike, (VECTOR - phase) % VECTOR, 0)
    start = chunk.to(tl.int64) * size + skipped
    n = tl.maximum(tl.minimum(numel - start, size), 0).to(tl.int32)
    # Spelled so that the compiler sees that the mask holds for a vector at a time.
    whole = tl.where(alike, n, 0) // VECTOR * VECTOR

    # The first loads go out before the coefficients, which wait for loads of their own.
    pointers = _pointers(addresses, start, P, GRAD_DTYPE, S, VECTOR)
    counts = _counts(addresses, whole, REQUIRED)
    i = tl.arange(0, WIDTH)
    values = _load(pointers, i, i, counts, REQUIRED)
    numbers = COEFFICIENTS(h, G, carried, params, step, C)
    if chunk == 0:
        for k in tl.static_range(RECURRENCES):
            tl.store(carried_on + k * params, numbers[len(numbers) - RECURRENCES + k])
    c = ()
    for k in tl.static_range(len(numbers) - RECURRENCES):
        c += (numbers[k],)
    inv_scale = c[0]
    if UNSCALE:
        inv_scale = (1.0 / tl.load(scale_ptr).to(tl.float64)).to(C)
    done = whole * 0
    while done < whole:
        at = done + i
        _apply(values, pointers, at, at, counts, c, inv_scale, RULE, C, UNSCALE)
        done += WIDTH
        values = _load(pointers, done + i, done + i, counts, REQUIRED)

    anywhere = _pointers(addresses, start, P, GRAD_DTYPE, S, 0)
    if alike:
        before = tl.where(chunk == 0, tl.minimum(skipped, numel).to(tl.int32), 0)
        _update_ends(
            addresses, anywhere, skipped, before, whole, n - whole, c, inv_scale,
            RULE, REQUIRED, C, UNSCALE,
        )  # fmt: skip
    else:
        _update_narrow(addresses, anywhere, n, c, inv_scale, RULE, REQUIRED, C, UNSCALE)
