"""Where and how precisely a run computes: device, precision, seeds, memory. Called, never at import."""

import resource
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from trainer.config import RuntimeSpec
from trainer.errors import BadInputError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The device and the precision that a run resolved to."""

    device: torch.device
    precision: str
    """``fp32``, ``fp16`` or ``bf16``."""

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return DTYPES[self.precision]

    @property
    def is_cuda(self) -> bool:
        """Whether the device runs ahead of the process, so that reading a value waits for it."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32")

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler: alive for fp16 only, since bf16 has the exponents of float32."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def synchronize(self) -> None:
        """Wait until the device has done what it was given. A GPU synchronisation."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def resolve_runtime(spec: RuntimeSpec) -> Runtime:
    """Ask the machine what it has, set torch's threads, and say what a run will use.

    Raises:
        BadInputError: The configuration asks for a GPU, or for a precision, that this machine lacks.
    """
    has_cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not has_cuda:
        raise BadInputError("runtime.device is cuda but torch sees no GPU here; install a driver or use device: auto")
    device = torch.device("cuda" if has_cuda and spec.device != "cpu" else "cpu")
    # is_bf16_supported counts a slow emulation on older GPUs as support unless told not to.
    has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if spec.precision == "bf16" and not has_bf16:
        raise BadInputError("runtime.precision is bf16 but this GPU has none; use precision: fp16 or auto")
    precision: str = spec.precision
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16" if has_bf16 else "fp16"
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    return Runtime(device=device, precision=precision)


def seed_step(seed: int, examples: int) -> None:
    """Make all randomness of the next optimizer step a function of the seed and of where the run stands.

    No random state has to be saved then: a resumed run, or a repeated step, draws what an uninterrupted one draws.
    The pair is hashed because torch's CPU generator uses only the low 32 bits of its seed.
    """
    torch.manual_seed(mix_seed(seed, examples))


def mix_seed(*parts: int) -> int:
    """Return one well-mixed 63-bit seed for a tuple of numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def reset_peak_memory(runtime: Runtime) -> None:
    """Start measuring the peak of the device's allocator anew; the process's own peak cannot be reset."""
    if runtime.is_cuda:
        torch.cuda.reset_peak_memory_stats(runtime.device)


def measure_peak_memory(runtime: Runtime) -> int:
    """Return bytes: the allocator's peak on CUDA, the peak resident set of the process on a CPU."""
    if runtime.is_cuda:
        return torch.cuda.max_memory_allocated(runtime.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
