"""Whole runs of a tiny student: gradients, resumption, verdicts, and what a run tells."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.tiny import FolderLog, Listener, MemoryCheckpoints, make_world
from trainer.batches import Example, collate
from trainer.checkpoint import fingerprint_run, pack_state, unpack_state
from trainer.config import TrialSpec
from trainer.errors import BadInputError, DivergedError, MemoryExhaustedError, StoppedError
from trainer.events import Checkpointed, Evaluated, TrialResult
from trainer.loop import train
from trainer.material import Material, load_material
from trainer.runtime import Runtime, resolve_runtime
from trainer.session import Session
from trainer.state import TrainState, start_state
from trainer.step import accumulate_gradients, take_step

EVERY_TERM = {
    "geo_states": "decoder",
    "hidden_weight": 0.5,
    "taid": {"schedule": "adaptive", "start": 0.3, "alpha": 0.2},
}
FREE_ENCODER = {"encoder": {"keep": 1, "frozen": False}}


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material(make_world().spec())


def run(
    spec: TrialSpec,
    material: Material,
    folder: Path,
    *,
    checkpoints: MemoryCheckpoints | None = None,
    listener: Listener | None = None,
) -> tuple[TrialResult, MemoryCheckpoints, Listener, FolderLog]:
    checkpoints, listener, log = checkpoints or MemoryCheckpoints(), listener or Listener(), FolderLog(folder)
    return train(spec, material, checkpoints, listener, log), checkpoints, listener, log


def content(blob: bytes) -> dict[str, Any]:
    """Return a checkpoint's content without its clocks."""
    loaded = torch.load(io.BytesIO(blob), weights_only=True)
    for event in loaded["evaluations"]:
        event["metrics"].pop("rtf")
    return {key: value for key, value in loaded.items() if not key.endswith("_seconds")}


def assert_same(first: Any, second: Any) -> None:
    """Compare to the last bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def uneven_examples(material: Material) -> list[Example]:
    """Return six examples, no two batches of which have as many tokens."""
    examples = sorted((material.train[index] for index in range(18)), key=lambda e: len(e.token_ids))
    return [*examples[:3], *examples[-3:]]


@pytest.mark.parametrize("chunk_logits", [1, 2**24])
@pytest.mark.parametrize(
    "loss",
    [
        {"geo_states": "encoder"},
        {"geo_states": "decoder", "hidden_weight": 1.5, "hidden_states": "encoder"},
        {"geo_states": "encoder", "hidden_weight": 1.5, "hidden_states": "decoder"},
        {"taid": {"space": "logit", "start": 0.3}},
        {"taid": {"space": "prob", "start": 0.3}},
    ],
)
@pytest.mark.parametrize("micro_size", [1, 4])
def test_gradient_does_not_depend_on_how_the_batch_is_split(
    material: Material, micro_size: int, loss: dict[str, Any], chunk_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_world().spec(student={**FREE_ENCODER, "dropout": 0.0}, loss={"geo_weight": 2.0, **loss})
    monkeypatch.setattr("trainer.token_terms.CHUNK_LOGITS", chunk_logits)
    examples = uneven_examples(material)

    def gradients(size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        state = start_state(spec, material)
        batches = [collate(examples[i : i + size], material.vocabulary) for i in range(0, len(examples), size)]
        terms = accumulate_gradients(
            state, batches, material.teacher, loss=spec.loss, kl_weight=3.0, runtime=material.runtime
        )
        projectors = [parameter for module in state.projectors for parameter in module.parameters()]
        assert len(projectors) == (4 if spec.loss.hidden_weight else 2)
        parameters = [*state.student.trainable().values(), *projectors]
        return [p.grad for p in parameters if p.grad is not None], terms

    (whole, whole_terms), (split, split_terms) = gradients(6), gradients(micro_size)
    assert len(whole) == len(split) > 20
    for first, second in zip(whole, split, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(whole_terms, split_terms)
    assert whole_terms[0].item() == pytest.approx(
        (
            whole_terms[1] + 3.0 * whole_terms[2] + 2.0 * whole_terms[3] + spec.loss.hidden_weight * whole_terms[4]
        ).item(),
        rel=1e-5,
    )
    assert (whole_terms[4] > 0) == (spec.loss.hidden_weight > 0)
    assert (whole_terms[5] > 0) == (spec.loss.taid is not None)


def test_taid_moves_once_per_step_however_the_batch_is_split(material: Material) -> None:
    examples = uneven_examples(material)

    def walk(micro_size: int) -> list[float]:
        spec = make_world().spec(loss=EVERY_TERM, student={"dropout": 0.0}, optim={"micro_batch_size": micro_size})
        state = start_state(spec, material)
        assert state.taid is not None
        shares = []
        for _ in range(3):
            take_step(spec, material, state, examples)
            shares.append(state.taid.share.item())
        return shares

    whole = walk(6)
    assert whole[0] < whole[1] < whole[2] < 1.0
    assert walk(1) == pytest.approx(whole, rel=1e-5)


def test_taid_is_built_only_where_a_kl_is_trained(material: Material) -> None:
    assert start_state(make_world().spec(loss={"taid": {}}), material).taid is not None
    assert start_state(make_world().spec(loss={"taid": {}, "kl_weight": 0.0}), material).taid is None


def test_padding_changes_nothing(material: Material) -> None:
    spec = make_world().spec(student={**FREE_ENCODER, "dropout": 0.0})
    short, long = uneven_examples(material)[0], uneven_examples(material)[-1]
    state = start_state(spec, material)
    alone = state.student(collate([short], material.vocabulary)).decoder_states
    padded = state.student(collate([short, long], material.vocabulary)).decoder_states
    torch.testing.assert_close(alone[0], padded[0, : alone.shape[1]], rtol=1e-4, atol=1e-5)


def test_a_run_evaluates_at_its_marks_saves_before_it_reports_and_ends_at_its_budget(
    material: Material, tmp_path: Path
) -> None:
    spec = make_world().spec(optim={"batch_size": 7, "examples": 24}, evaluation={"count": 3})
    result, checkpoints, listener, log = run(spec, material, tmp_path)
    assert [e.examples for e in listener.evaluations()] == [8, 16, 24]
    assert [e.last for e in listener.evaluations()] == [False, False, True]
    assert [examples for examples, _ in checkpoints.saved] == [14, 21, 24]
    kinds = [type(e) for e in listener.events if isinstance(e, Evaluated | Checkpointed)]
    assert kinds == [Checkpointed, Evaluated] * 3
    assert (result.examples, result.steps, result.test) == (24, 4, None)
    assert result.dev == listener.evaluations()[-1].metrics
    assert result.trainable_parameters < result.parameters
    assert result.peak_memory_bytes > 2**20
    history = log.files["training_history.json"]
    assert [row["examples"] for row in history["training"]] == [7, 14, 21, 24]
    assert [row["examples"] for row in history["evaluations"]] == [8, 16, 24]
    assert log.files["training_config.json"]["trial"] == spec.model_dump(mode="json")
    assert list((tmp_path / "tb").glob("events.out.tfevents.*"))


def test_a_step_past_several_marks_evaluates_once_and_reports_each(material: Material, tmp_path: Path) -> None:
    spec = make_world().spec(optim={"batch_size": 20, "examples": 24}, evaluation={"count": 6})
    _, checkpoints, listener, _ = run(spec, material, tmp_path)
    assert [e.examples for e in listener.evaluations()] == [4, 8, 12, 16, 20, 24]
    assert len(checkpoints.saved) == 2
    assert len({e.metrics for e in listener.evaluations()[:5]}) == 1


@pytest.mark.parametrize("loss", [{}, EVERY_TERM])
@pytest.mark.parametrize("stopped_at_call", [1, 3, 5])
def test_a_run_resumed_at_any_step_equals_an_uninterrupted_one_bitwise(
    material: Material, tmp_path: Path, stopped_at_call: int, loss: dict[str, Any]
) -> None:
    spec = make_world().spec(student={**FREE_ENCODER, "dropout": 0.3}, optim={"batch_size": 5}, loss=loss)
    whole, expected, _, _ = run(spec, material, tmp_path / "whole")
    checkpoints = MemoryCheckpoints()
    with pytest.raises(StoppedError):
        listener = Listener(verdict="release", at_call=stopped_at_call)
        run(spec, material, tmp_path / "first", checkpoints=checkpoints, listener=listener)
    torch.manual_seed(99)
    resumed, _, listener, log = run(spec, material, tmp_path / "second", checkpoints=checkpoints)
    assert_same(content(checkpoints.saved[-1][1]), content(expected.saved[-1][1]))
    assert [e.examples for e in listener.evaluations()] == [8, 16, 24]
    assert resumed.dev.errors == whole.dev.errors
    assert [row["examples"] for row in log.files["training_history.json"]["training"]] == [5, 10, 15, 20, 24]


def test_an_evaluation_whose_report_was_lost_is_not_repeated_but_reported_again(
    material: Material, tmp_path: Path
) -> None:
    spec = make_world().spec()
    _, checkpoints, first, _ = run(spec, material, tmp_path)
    saved = MemoryCheckpoints(checkpoints.saved[:2])
    _, _, second, _ = run(spec, material, tmp_path, checkpoints=saved)
    assert second.evaluations()[:2] == first.evaluations()[:2]
    assert [e.examples for e in second.evaluations()] == [8, 16, 24]
    assert len(saved.saved) == 3


def test_a_second_trial_in_a_warm_process_equals_one_in_a_fresh_one(tmp_path: Path) -> None:
    spec = make_world().spec(student={"encoder": {"keep": 1, "init": "random", "frozen": False}})
    other = make_world().spec(optim={"lr": 1e-2}, student=FREE_ENCODER)
    warm, fresh = Session(), Session()
    warm.train(other, MemoryCheckpoints(), Listener(), FolderLog(tmp_path / "a"))
    in_warm, in_fresh = MemoryCheckpoints(), MemoryCheckpoints()
    material = warm.prepare(spec)
    warm.train(spec, in_warm, Listener(), FolderLog(tmp_path / "b"))
    assert warm.prepare(other) is material
    fresh.train(spec, in_fresh, Listener(), FolderLog(tmp_path / "c"))
    assert_same(content(in_warm.saved[-1][1]), content(in_fresh.saved[-1][1]))


def test_stop_ends_a_run_without_a_checkpoint_and_release_with_one(material: Material, tmp_path: Path) -> None:
    spec = make_world().spec()
    for verdict, saved in (("stop", []), ("release", [4])):
        checkpoints = MemoryCheckpoints()
        with pytest.raises(StoppedError, match="stopped after 4 examples") as caught:
            listener = Listener(verdict=verdict, at_call=1)
            run(spec, material, tmp_path, checkpoints=checkpoints, listener=listener)
        assert caught.value.examples == 4
        assert [examples for examples, _ in checkpoints.saved] == saved


def test_a_run_stopped_at_an_evaluation_keeps_its_checkpoint_and_history(material: Material, tmp_path: Path) -> None:
    checkpoints, log = MemoryCheckpoints(), FolderLog(tmp_path)
    with pytest.raises(StoppedError):
        train(make_world().spec(), material, checkpoints, Listener(verdict="stop", at_evaluation=1), log)
    assert [examples for examples, _ in checkpoints.saved] == [8]
    assert [row["examples"] for row in log.files["training_history.json"]["evaluations"]] == [8]


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_run_whose_loss_is_not_finite_says_so(material: Material, tmp_path: Path, lr: float) -> None:
    spec = make_world().spec(optim={"lr": lr, "warmup_fraction": 0.0})
    with pytest.raises(DivergedError, match=r"lower optim\.lr") as caught:
        run(spec, material, tmp_path)
    assert not math.isfinite(caught.value.value)


def test_the_history_has_a_column_for_each_term_that_is_trained(material: Material, tmp_path: Path) -> None:
    spec = make_world().spec(loss=EVERY_TERM)
    _, checkpoints, _, log = run(spec, material, tmp_path / "every")
    rows = log.files["training_history.json"]["training"]
    assert all(row[name] > 0 for row in rows for name in ("cross_entropy", "kl", "geodesic", "hidden"))
    shares = [row["taid_share"] for row in rows]
    assert shares == sorted(shares)
    assert 0.3 < shares[0] < shares[-1] <= 1.0
    assert content(checkpoints.saved[-1][1])["taid"]["share"].item() >= shares[-1]
    _, _, _, log = run(make_world().spec(loss={"kl_weight": 0.0, "geo_weight": 0.0}), material, tmp_path / "none")
    for row in log.files["training_history.json"]["training"]:
        assert [row[name] for name in ("kl", "geodesic", "hidden", "taid_share")] == [None] * 4


def test_the_loss_falls_and_the_frozen_encoder_does_not_move(material: Material, tmp_path: Path) -> None:
    spec = make_world().spec(optim={"examples": 320, "lr": 1e-2, "batch_size": 8}, evaluation={"count": 1})
    result, checkpoints, _, log = run(spec, material, tmp_path)
    rows = log.files["training_history.json"]["training"]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert result.dev.cross_entropy < 4.0
    assert not any(".encoder." in name for name in content(checkpoints.saved[-1][1])["student"])


def test_a_checkpoint_of_another_run_or_none_at_all_is_refused(material: Material, tmp_path: Path) -> None:
    spec = make_world().spec()
    _, checkpoints, _, _ = run(spec, material, tmp_path)
    other = make_world().spec(optim={"lr": 2e-3})
    with pytest.raises(BadInputError, match="belongs to a run with another configuration"):
        run(other, material, tmp_path, checkpoints=MemoryCheckpoints(checkpoints.saved))
    with pytest.raises(BadInputError, match="no file that torch can load"):
        run(spec, material, tmp_path, checkpoints=MemoryCheckpoints([(8, checkpoints.saved[0][1][:500])]))


def test_a_fingerprint_ignores_places_and_memory_and_nothing_else() -> None:
    base = make_world().spec()

    def changed(**parts: Any) -> bool:
        return fingerprint_run(make_world().spec(**parts), "data") != fingerprint_run(base, "data")

    assert not changed(data={"train": "/elsewhere"}, runtime={"threads": 2}, optim={"micro_batch_size": 1})
    assert not changed(teacher={"model": "/elsewhere", "device": "cpu"}, evaluation={"batch_size": 7})
    assert changed(seed=1)
    assert changed(optim={"batch_size": 5})
    assert changed(data={"min_duration_s": 0.2})
    assert fingerprint_run(base, "data") != fingerprint_run(base, "other data")


def test_memory_that_runs_out_halves_the_micro_batch_and_leaves_the_result_alone(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_world().spec(student={**FREE_ENCODER, "dropout": 0.0})
    sizes: list[int] = []

    def run_out(state: TrainState, batches: Sequence[Any], *rest: Any, **more: Any) -> torch.Tensor:
        sizes.append(len(batches[0].labels))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("no memory")
        return accumulate_gradients(state, batches, *rest, **more)

    monkeypatch.setattr("trainer.step.accumulate_gradients", run_out)
    state, expected = start_state(spec, material), start_state(spec, material)
    examples = uneven_examples(material)
    limit = 6
    take_step(spec, material, expected, examples)
    limit = 2
    take_step(spec, material, state, examples)
    take_step(spec, material, state, examples)
    assert sizes == [6, 6, 3, 2, 2]
    assert state.examples == 12
    limit = 0
    with pytest.raises(MemoryExhaustedError, match="one example at a time does not fit"):
        take_step(spec, material, state, examples)


def test_fp16_skips_steps_that_overflow_and_the_schedule_waits(material: Material) -> None:
    spec = make_world().spec(student=FREE_ENCODER, optim={"warmup_fraction": 0.0}, loss=EVERY_TERM)
    fp16 = type(material)(**{**vars(material), "runtime": Runtime(device=torch.device("cpu"), precision="fp16")})
    state = start_state(spec, fp16)
    examples = uneven_examples(material)
    assert state.scaler.is_enabled()
    for _ in range(4):  # the scale starts so high that the first steps are skipped
        take_step(spec, fp16, state, examples)
    before = {name: p.clone() for name, p in state.student.trainable().items()}
    scheduled = state.scheduled_examples
    assert state.taid is not None
    previous_loss = state.taid.previous_loss
    assert previous_loss.isfinite()
    assert scheduled > 0
    state.scaler.update(1e38)
    take_step(spec, fp16, state, examples)
    assert state.examples == 30
    assert state.scheduled_examples == scheduled
    assert state.taid.previous_loss is previous_loss
    assert_same(before, {name: p.detach() for name, p in state.student.trainable().items()})
    assert all(p.dtype == torch.float32 for p in state.student.trainable().values())
    blob = pack_state(state, "f")
    fresh = start_state(spec, fp16)
    unpack_state(blob, fresh, "f", fp16.runtime)
    assert fresh.scaler.get_scale() == state.scaler.get_scale()


@pytest.mark.parametrize("chunk_logits", [1, 2**24])
def test_bf16_trains_without_a_scaler(material: Material, chunk_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.token_terms.CHUNK_LOGITS", chunk_logits)
    spec = make_world().spec(student=FREE_ENCODER, loss=EVERY_TERM)
    runtime = resolve_runtime(make_world().spec(runtime={"precision": "bf16"}).runtime)
    bf16 = type(material)(**{**vars(material), "runtime": runtime})
    state = start_state(spec, bf16)
    take_step(spec, bf16, state, uneven_examples(material))
    assert not state.scaler.is_enabled()
    assert state.sums.isfinite().all()
    assert all(p.dtype == torch.float32 for p in state.student.trainable().values())
