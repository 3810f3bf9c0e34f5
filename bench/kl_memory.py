"""Peak memory of cross-entropy and KL over a Whisper's vocabulary, in chunks and with all logits at once.

    python -m bench.kl_memory [--batch-sizes 4 8 16 32] [--tokens 64] [--trains-head]

One process for each row, since the peak of a process never falls. On a CPU: its peak resident set, less what it held
before the loss (weights and states). On CUDA: the allocator's peak, less the same. Whisper-small under large-v2.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
from torch import nn

from trainer.token_terms import Target, sum_token_terms

VOCAB, STUDENT_WIDTH, TEACHER_WIDTH = 51_865, 768, 1280
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
"""Makes glibc give freed megabytes back: else what it hoards counts, and grows with the number of chunks."""


def main() -> None:
    """Print a table, or, as one of its processes, measure one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=64, help="labelled tokens of an utterance")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trains-head", action="store_true", help="the output layer learns too: no LoRA")
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one-row", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_row:
        torch.set_num_threads(chosen.threads)
        measured = measure(chosen.batch_sizes[0], chosen.tokens, is_whole=chosen.whole, trains_head=chosen.trains_head)
        print(json.dumps(measured))
        return
    print(f"{'batch':>5}  {'tokens':>6}  {'all at once':>20}  {'in chunks':>20}")
    for batch_size in chosen.batch_sizes:
        cells = []
        for mode in (["--whole"], []):
            options = [f"--batch-sizes={batch_size}", f"--tokens={chosen.tokens}", f"--threads={chosen.threads}"]
            options += ["--trains-head"] * chosen.trains_head + mode
            command = [sys.executable, "-m", "bench.kl_memory", "--one-row", *options]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | RETURN_AT_ONCE
            )
            row = json.loads(done.stdout)
            cells.append(f"{row['peak_bytes'] / 2**20:8.0f} MiB {row['seconds']:5.1f} s")
        print(f"{batch_size:>5}  {batch_size * chosen.tokens:>6}  {cells[0]:>20}  {cells[1]:>20}", flush=True)


def measure(batch_size: int, tokens: int, *, is_whole: bool, trains_head: bool) -> dict[str, float]:
    """Return bytes and seconds of one forward and backward pass in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, teacher = (nn.Linear(width, VOCAB, bias=False, device=device) for width in (STUDENT_WIDTH, TEACHER_WIDTH))
    student.requires_grad_(trains_head)
    states = torch.randn(batch_size, tokens, STUDENT_WIDTH, device=device, requires_grad=True)
    target = Target(
        states=torch.randn(batch_size, tokens, TEACHER_WIDTH, device=device),
        head=teacher.requires_grad_(False),
        temperature=2.0,
    )
    labels = torch.randint(VOCAB, (batch_size, tokens), device=device)
    step(states[:1, :1], student, labels[:1, :1], Target(states=target.states[:1, :1], head=teacher, temperature=2.0))
    before, started = peak_bytes(device), time.perf_counter()
    step(states, student, labels, target, chunk_tokens=batch_size * tokens if is_whole else None)
    peak = peak_bytes(device)  # on CUDA it waits for the device
    return {"peak_bytes": peak - before, "seconds": time.perf_counter() - started}


def step(
    states: torch.Tensor, head: nn.Linear, labels: torch.Tensor, target: Target, *, chunk_tokens: int | None = None
) -> None:
    """Run forward and backward once."""
    sums = sum_token_terms(states, head, labels, target, chunk_tokens=chunk_tokens)
    (sums[0] + sums[1]).backward()


def peak_bytes(device: torch.device) -> int:
    """Return the most memory held so far: by the allocator on CUDA, by the process on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
