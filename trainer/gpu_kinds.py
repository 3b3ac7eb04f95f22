"""GPUs that a training may be planned for: their peak rates and memory, as their makers' data sheets say."""

from dataclasses import dataclass

from .data_formats import known


@dataclass(frozen=True)
class GPUKind:
    """
    A kind of GPU.

    Args:
        name (`str`): what it is called.
        tflops_16bit (`float`): dense peak of bfloat16 (of float16 where there is no bfloat16), 10¹² operations/s.
        tflops_32bit (`float`): peak of float32 without tensor cores, as torch multiplies by default.
        memory_gb (`float`): 10⁹ bytes.
    """

    name: str
    tflops_16bit: float
    tflops_32bit: float
    memory_gb: float


GPUS = {
    "b200": GPUKind("B200", 2250, 75, 180),
    "h200": GPUKind("H200 SXM", 989, 67, 141),
    "h100": GPUKind("H100 SXM", 989, 67, 80),
    "h100-pcie": GPUKind("H100 PCIe", 756, 51, 80),
    "a100": GPUKind("A100, 80 GB", 312, 19.5, 80),
    "a100-40gb": GPUKind("A100, 40 GB", 312, 19.5, 40),
    "l40s": GPUKind("L40S", 362, 91.6, 48),
    "l4": GPUKind("L4", 121, 30.3, 24),
    "a10": GPUKind("A10", 125, 31.2, 24),
    "rtx4090": GPUKind("GeForce RTX 4090", 165, 82.6, 24),
    "v100": GPUKind("V100 SXM2, 32 GB", 125, 15.7, 32),
    "t4": GPUKind("T4", 65, 8.1, 16),
    "mi300x": GPUKind("Instinct MI300X", 1307, 163, 192),
}


def gpu_kind(name: str) -> GPUKind:
    """
    A kind of GPU by its short name.

    Raises:
        ValueError: if the name is unknown.
    """
    return GPUS[known("kind of GPU", name.lower(), GPUS)]


__all__ = ["GPUS", "GPUKind", "gpu_kind"]
