"""Accelerators by name: dense bfloat16 peak and memory, as their vendors' data sheets say."""

from typing import NamedTuple

from emma.errors import EmmaError


class Gpu(NamedTuple):
    """An accelerator.

    Args:
        peak: bfloat16 operations per second in dense matrix products with float32 accumulation, without sparsity.
        memory: GiB that software sees, rounded down.
        devices: names that CUDA reports for it.
    """

    peak: float
    memory: float
    devices: tuple[str, ...]


GPUS = {
    "a100": Gpu(312e12, 79, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")),
    "a100-40gb": Gpu(312e12, 39, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    "h100": Gpu(989e12, 79, ("NVIDIA H100 80GB HBM3",)),
    "h100-pcie": Gpu(756e12, 79, ("NVIDIA H100 PCIe",)),
    "h200": Gpu(989e12, 139, ("NVIDIA H200",)),
    "b200": Gpu(2250e12, 178, ("NVIDIA B200",)),
    "l40s": Gpu(362e12, 44, ("NVIDIA L40S",)),
    "a6000": Gpu(154.8e12, 47, ("NVIDIA RTX A6000",)),
    "4090": Gpu(165.2e12, 23, ("NVIDIA GeForce RTX 4090",)),
}


def find_gpu(name: str) -> Gpu:
    """The accelerator of this name.

    Raises:
        EmmaError: not in the table.
    """
    if name.lower() not in GPUS:
        raise EmmaError(
            f"--gpu {name} is not one of {', '.join(GPUS)}; for another one give --peak TFLOPS and --memory GiB"
        )
    return GPUS[name.lower()]


def device_peak(name: str) -> float | None:
    """bfloat16 operations per second of the device that CUDA calls `name`; None if it is not in the table."""
    return next((gpu.peak for gpu in GPUS.values() if name in gpu.devices), None)
