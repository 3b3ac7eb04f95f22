"""
GPUs that a training may be planned for: their peak rates and memory, as their makers' data sheets say.

Since Ampere NVIDIA gives rates of tensor cores with sparsity, or both: half of that is the dense rate here. Documents,
and what they say of bfloat16 (float16 where there is none) in TFLOPS, a bar before the rate with sparsity:

- NVIDIA HGX B200 data sheet, of each GPU: | 4,500;
- NVIDIA H200 Tensor Core GPU data sheet: | 1,979; H100: SXM | 1,979, PCIe | 1,513; A100: 312 | 624;
- NVIDIA L40S data sheet: 362.05 | 733; L4: | 242; A10: 125 | 250;
- NVIDIA Ada GPU Architecture (white paper), appendix A, GeForce RTX 4090, added up in float32: 165.2 | 330.4;
- NVIDIA V100 Tensor Core GPU data sheet, SXM2: 125; T4: 65;
- AMD Instinct MI300X data sheet: 1,307.4 | 2,614.9; float32 is that of vectors.

mosaicml/composer, composer/callbacks/speed_monitor.py, reads those of H200, H100, A100, A10, V100 and T4 alike.
"""

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
    "b200": GPUKind("B200 SXM", 2250, 75, 180),
    "h200": GPUKind("H200 SXM", 989.5, 67, 141),
    "h100": GPUKind("H100 SXM", 989.5, 67, 80),
    "h100-pcie": GPUKind("H100 PCIe", 756.5, 51, 80),
    "a100": GPUKind("A100, 80 GB", 312, 19.5, 80),
    "a100-40gb": GPUKind("A100, 40 GB", 312, 19.5, 40),
    "l40s": GPUKind("L40S", 362.05, 91.6, 48),
    "l4": GPUKind("L4", 121, 30.3, 24),
    "a10": GPUKind("A10", 125, 31.2, 24),
    "rtx4090": GPUKind("GeForce RTX 4090", 165.2, 82.6, 24),
    "v100": GPUKind("V100 SXM2, 32 GB", 125, 15.7, 32),
    "t4": GPUKind("T4", 65, 8.1, 16),
    "mi300x": GPUKind("Instinct MI300X", 1307.4, 163.4, 192),
}


def gpu_kind(name: str) -> GPUKind:
    """
    A kind of GPU by its short name.

    Raises:
        ValueError: if the name is unknown.
    """
    return GPUS[known("kind of GPU", name.lower(), GPUS)]


__all__ = ["GPUS", "GPUKind", "gpu_kind"]
