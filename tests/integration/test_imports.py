"""What importing does, seen from a fresh process: nothing."""

import subprocess
import sys
from pathlib import Path


def test_importing_the_trainer_has_no_effect() -> None:
    """No device is asked, nothing is seeded, no logging is configured, no environment variable is set."""
    code = """
import logging, os, sys
before = dict(os.environ)
import torch
state = torch.get_rng_state()
import trainer.session
assert not torch.cuda.is_initialized()
assert torch.equal(torch.get_rng_state(), state)
assert not logging.getLogger().handlers
assert {k: v for k, v in os.environ.items() if k not in before and "KMP" not in k} == {}, os.environ.keys() - before
import trainer
assert trainer.__file__.startswith(os.getcwd()), trainer.__file__
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
