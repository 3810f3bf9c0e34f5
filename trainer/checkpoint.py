"""A run's state as bytes, and back; bytes of another run are refused."""

import hashlib
import io
import json
import pickle
from typing import Any

import torch

from trainer.config import TrialSpec
from trainer.errors import BadInputError
from trainer.events import Evaluated, HistoryRow
from trainer.runtime import Runtime
from trainer.state import TrainState

FORMAT = 2


def fingerprint_run(spec: TrialSpec, data_fingerprint: str) -> str:
    """Return a digest of all that makes one run's weights what they are.

    Left out: where files lie (another machine may see them elsewhere; ``data_fingerprint`` says what they are), the
    device, and what changes memory but no result.
    """
    content = spec.model_dump(mode="json", exclude={"data": {"train", "dev", "test"}, "runtime": True})
    content["teacher"].pop("model")
    content["teacher"].pop("device")
    content["student"].pop("model")
    content["optim"].pop("micro_batch_size")
    content["evaluation"].pop("batch_size")
    text = json.dumps([FORMAT, content, data_fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def pack_state(state: TrainState, fingerprint: str) -> bytes:
    """Return the state as bytes: tensors and plain Python only, so that it loads with ``weights_only=True``."""
    content = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "student": {name: parameter.detach() for name, parameter in state.student.trainable().items()},
        "projector": state.projector.state_dict() if state.projector else None,
        "hidden_projector": state.hidden_projector.state_dict() if state.hidden_projector else None,
        "taid": state.taid.state_dict() if state.taid else None,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "examples": state.examples,
        "steps": state.steps,
        "scheduled_examples": state.scheduled_examples,
        "sums": state.sums,
        "num_summed": state.num_summed,
        "history": [row.model_dump() for row in state.history],
        "evaluations": [event.model_dump() for event in state.evaluations],
        "train_seconds": state.train_seconds,
        "evaluation_seconds": state.evaluation_seconds,
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def unpack_state(blob: bytes, state: TrainState, fingerprint: str, runtime: Runtime) -> None:
    """Bring a freshly built state to where the bytes were taken.

    Raises:
        BadInputError: The bytes are no checkpoint of ours, or are of another run.
    """
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(blob), map_location=runtime.device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as exc:
        raise BadInputError(
            "the checkpoint is no file that torch can load; delete it and the run starts afresh"
        ) from exc
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInputError(f"the checkpoint is not of format {FORMAT}; delete it and the run starts afresh")
    if content["fingerprint"] != fingerprint:
        raise BadInputError(
            "the checkpoint belongs to a run with another configuration or other data; "
            "delete it, or restore what the run was started with"
        )
    with torch.no_grad():
        for name, parameter in state.student.trainable().items():
            parameter.copy_(content["student"][name])
    if state.projector:
        state.projector.load_state_dict(content["projector"])
    if state.hidden_projector:
        state.hidden_projector.load_state_dict(content["hidden_projector"])
    if state.taid:
        state.taid.load_state_dict(content["taid"])
    state.optimizer.load_state_dict(content["optimizer"])
    if content["scaler"] and state.scaler.is_enabled():  # neither holds on a machine that computes in bf16 or fp32
        state.scaler.load_state_dict(content["scaler"])
    state.examples = content["examples"]
    state.steps = content["steps"]
    state.scheduled_examples = content["scheduled_examples"]
    state.sums = content["sums"]
    state.num_summed = content["num_summed"]
    state.history = [HistoryRow.model_validate(row) for row in content["history"]]
    state.evaluations = [Evaluated.model_validate(event) for event in content["evaluations"]]
    state.train_seconds = content["train_seconds"]
    state.evaluation_seconds = content["evaluation_seconds"]
