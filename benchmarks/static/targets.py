"""The architectures, what limits the warps on them, and a roofline of three GPUs."""

from dataclasses import dataclass

SCHEDULERS = 4  # of a multiprocessor; a program has a warp for each: `WARPS` of tables/layout.py


@dataclass(frozen=True)
class Target:
    """One architecture. `slots` are the warps that a scheduler holds at most.

    A scheduler (a quarter of a multiprocessor) has `registers` for a lane of all its warps
    together, given out in steps of `granule`.
    """

    name: str
    backend: str
    arch: int | str
    lanes: int
    slots: int
    registers: int
    granule: int

    @property
    def capability(self) -> tuple[int, int]:
        """Of CUDA; (0, 0) on AMD."""
        major, minor = divmod(self.arch, 10) if isinstance(self.arch, int) else (0, 0)
        return major, minor

    def occupancy(self, registers: int) -> float:
        """The share of its warps' slots that a kernel of so many registers can fill.

        Registers alone limit it: a program has one warp for each scheduler and no shared memory
        to speak of.
        """
        given = -(-max(registers, 1) // self.granule) * self.granule
        return min(self.slots, self.registers // given) / self.slots

    def lanes_of(self, registers: int) -> int:
        """Lanes that a multiprocessor holds of a kernel of so many registers."""
        return round(self.occupancy(registers) * self.slots) * SCHEDULERS * self.lanes


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": 64 warps and 65,536
# registers a multiprocessor, that is 16 and 512 a lane for each of four schedulers; a warp gets
# registers in units of 256, 8 a lane. CDNA3 ISA guide, 3.6.4: 8 waves and 512 VGPRs a SIMD, by 8.
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, lanes=32, slots=16, registers=512, granule=8),
        Target("sm_90", "cuda", 90, lanes=32, slots=16, registers=512, granule=8),
        Target("sm_100", "cuda", 100, lanes=32, slots=16, registers=512, granule=8),
        Target("gfx942", "hip", "gfx942", lanes=64, slots=8, registers=512, granule=8),
    )
}


@dataclass(frozen=True)
class Gpu:
    """A product: its architecture, memory bandwidth in GB/s, multiprocessors, clock in MHz."""

    name: str
    target: str
    gb_per_s: float
    multiprocessors: int
    mhz: float

    @property
    def instructions_per_ns(self) -> float:
        """Of single lanes: each of four schedulers issues one warp instruction a clock."""
        return self.multiprocessors * SCHEDULERS * 32 * self.mhz / 1e3


# NVIDIA's datasheets of the A100 80 GB SXM, H100 SXM and H200 SXM: bandwidth, and the clock at
# which multiprocessors x FP32 lanes x 2 is the datasheet's float32 rate (19.5, 67, 67 TFLOPS).
GPUS = (
    Gpu("A100", "sm_80", 2039, 108, 1410),
    Gpu("H100", "sm_90", 3350, 132, 1980),
    Gpu("H200", "sm_90", 4800, 132, 1980),
)


@dataclass(frozen=True)
class Estimate:
    """Milliseconds per 10^9 elements on one GPU: an estimate, from datasheets, not a measurement.

    `memory` is the time of the bytes at the full bandwidth, `issue` that of the hot loop's
    instructions at full issue; a step takes at least the longer one. `covered_us` is the memory
    latency that the loads of all resident warps, one iteration each, cover at that bandwidth:
    loads of one iteration in flight / bandwidth.
    """

    gpu: str
    memory: float
    issue: float
    covered_us: float

    @property
    def limit(self) -> str:
        """What takes longer."""
        return "memory" if self.memory >= self.issue else "issue"


def estimate(
    gpu: Gpu, bytes_per_element: float, instructions: float, load_bytes: float, occupancy: float
) -> Estimate:
    """`instructions` per element; `load_bytes` that a lane loads in an iteration."""
    target = TARGETS[gpu.target]
    resident = gpu.multiprocessors * SCHEDULERS * target.slots * occupancy * target.lanes
    return Estimate(
        gpu.name,
        memory=round(1e3 * bytes_per_element / gpu.gb_per_s, 3),
        issue=round(1e3 * instructions / gpu.instructions_per_ns, 3),
        covered_us=round(resident * load_bytes / gpu.gb_per_s / 1e3, 2),
    )
