"""Searched fields that cannot change the student: found by the preflight, before GPU time is spent on them."""

from dataclasses import dataclass

from search.config import StudySpec
from search.space import field_path, searched_values
from trainer.events import PreflightResult


@dataclass(frozen=True, kw_only=True)
class Term:
    """A term of the loss, and the fields that matter through it alone."""

    name: str
    """As the trainer reports it."""
    weight: str
    fields: tuple[str, ...]
    revived_by: tuple[str, ...] = ()
    """Fields that decide what the term reaches: where one is searched, trials differ, and nothing is called dead."""
    remedy: str


TERMS = (
    Term(
        name="kl",
        weight="loss.kl_weight",
        fields=(
            "loss.temperature",
            "loss.kl_warmup_fraction",
            *(f"loss.taid.{name}" for name in ("space", "schedule", "start", "end", "alpha", "beta")),
        ),
        remedy="let the decoder learn",
    ),
    Term(
        name="geodesic",
        weight="loss.geo_weight",
        fields=("loss.geo_states",),
        revived_by=("loss.geo_states", "student.encoder.frozen", "student.lora.encoder"),
        remedy="it trains the projector, which is thrown away; set loss.geo_states: decoder, or let the encoder learn",
    ),
    Term(
        name="hidden",
        weight="loss.hidden_weight",
        fields=("loss.hidden_states",),
        revived_by=("loss.hidden_states", "student.encoder.frozen", "student.lora.encoder"),
        remedy="it trains a projector, which is thrown away; set loss.hidden_states: decoder, or let the encoder learn",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DeadKnob:
    """A searched field that cannot change the student."""

    path: str
    sentence: str
    """Why, and what to do about it."""


def judge(spec: StudySpec, result: PreflightResult) -> tuple[PreflightResult, str | None]:
    """Add the dead knobs to what the preflight found; return it, and why the study is refused if it is strict."""
    dead = find_dead_knobs(spec, result)
    judged = result.model_copy(
        update={
            "warnings": (*result.warnings, *(each.sentence for each in dead)),
            "dead_knobs": tuple(each.path for each in dead),
        }
    )
    if not dead or not spec.study.strict:
        return judged, None
    reasons = "; ".join(each.sentence for each in dead)
    return judged, f"{reasons} (--strict refuses what is otherwise a warning)"


def find_dead_knobs(spec: StudySpec, result: PreflightResult) -> tuple[DeadKnob, ...]:
    """Return the searched fields that cannot change the student, in the order of the search space."""
    reached = {each.term: each.tensors for each in result.reach}
    keys = {field_path(spec.trial, key): key for key in spec.space}
    reasons: dict[str, str] = {}
    for term in TERMS:
        if not any(searched_values(spec, term.weight)):
            for path in term.fields:
                reasons[path] = f"{term.weight} is 0; raise it"
        elif reached.get(term.name) == 0 and keys.keys().isdisjoint(term.revived_by):
            for path in (term.weight, *term.fields):
                reasons[path] = (
                    f"the {term.name} term reaches none of its {result.trainable_tensors} trainable tensors "
                    f"(measured by a backward pass); {term.remedy}"
                )
    taid = spec.trial.loss.taid
    if taid is not None and taid.schedule == "linear" and "loss.taid.schedule" not in keys:
        for path in ("loss.taid.alpha", "loss.taid.beta"):
            reasons[path] = "a linear schedule does not look at it; set loss.taid.schedule: adaptive"
    if not result.has_dropout:
        reasons["student.dropout"] = "no part of it that learns has dropout; choose another student"
    reasons["optim.micro_batch_size"] = "it changes memory, never the gradient; set it in the trial section"
    return tuple(
        DeadKnob(
            path=path,
            sentence=f"searching {key} cannot change the student: {reasons[path]}, or take {key} out of the space",
        )
        for path, key in keys.items()
        if path in reasons
    )
