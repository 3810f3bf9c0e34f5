"""A trial's parameters: proposed once, recorded with the trials they were proposed from, the same for every attempt."""

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config import Scalar, StudySpec
from search.samplers import propose
from search.space import distributions
from search.study import OpenStudy

PROPOSAL = "distune:proposal"
"""Key of the trial attribute that holds its parameters and the trials they were proposed from."""


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """A trial that has its parameters."""

    parameters: dict[str, Scalar]
    last_step: int
    """The largest step reported so far; -1 before the first."""


def propose_once(study: OpenStudy, trial_id: int) -> Proposed:
    """Return the trial's parameters, proposing and recording them if no attempt before did.

    The proposal is one attribute, written first: whoever dies in the middle leaves the same parameters to the next.

    Raises:
        ConfigError: the trial was enqueued with parameters that are not in the space.
    """
    trials = study.optuna_study.get_trials(deepcopy=False)
    trial = next(each for each in trials if each._trial_id == trial_id)
    proposal = trial.user_attrs.get(PROPOSAL)
    if proposal is None:
        proposal = _propose(study, trial, trials)
        study.storage.set_trial_user_attr(trial_id, PROPOSAL, proposal)
    for key, distribution in distributions(study.spec).items():
        if key not in trial.params:
            internal = distribution.to_internal_repr(proposal["parameters"][key])
            study.storage.set_trial_param(trial_id, key, internal, distribution)
    return Proposed(parameters=proposal["parameters"], last_step=max(trial.intermediate_values, default=-1))


def _propose(study: OpenStudy, trial: FrozenTrial, trials: list[FrozenTrial]) -> dict[str, Any]:
    finished = [each for each in trials if each.state in {TrialState.COMPLETE, TrialState.PRUNED}]
    running = [each for each in trials if each.state == TrialState.RUNNING and PROPOSAL in each.user_attrs]
    seen = [*finished, *(as_seen_running(study.spec, each) for each in running)]
    return {
        "parameters": propose(study.spec, trial.number, seen, trial.system_attrs.get("fixed_params", {})),
        "finished": sorted(each.number for each in finished),
        "running": sorted(each.number for each in running),
    }


def as_seen_running(spec: StudySpec, trial: FrozenTrial) -> FrozenTrial:
    """Return a trial as a sampler saw it while it ran: by its proposal, whatever it has reported or become since."""
    seen = create_trial(
        state=TrialState.RUNNING,
        params=trial.user_attrs[PROPOSAL]["parameters"],
        distributions=distributions(spec),
    )
    seen.number = trial.number
    return seen
