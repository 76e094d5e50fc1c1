"""Answers the admin routes of experiments."""

import contextlib
import re
import secrets
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.api.admin_routes import AuditLog
from service.api.openapi import operation, path_parameter
from service.api.outcomes.arms import Arms
from service.api.outcomes.experiment_models import (
    NAME,
    ExperimentAnswer,
    ExperimentGroupsAnswer,
    ExperimentRequest,
)
from service.api.outcomes.outcome_routes import OFF
from service.api.rendering import json_response
from service.api.requests.request_body import read_json, shown, validate
from service.api.routing import BODY_PROBLEMS, KEY_PROBLEMS, Operation, add_operations, admit
from service.bundles.active_bundle import ActiveBundle
from service.bundles.experiment_bundles import ExperimentBundles, other_runs
from service.bundles.operator_state import OperatorState
from service.errors import (
    Conflict,
    OperatorStateUnavailable,
    OutcomesUnavailable,
    RuleBroken,
    RuleViolation,
    UnknownExperiment,
)
from service.experiments.experiment import Arm, Experiment
from service.outcomes.breakdown import experiment_counts
from service.stores.outcomes.outcome_store import OutcomeStore

_NAME = path_parameter("name", "Small letters, digits and hyphens, at most 32.")
_PUT = operation(body=ExperimentRequest, parameters=[_NAME])
_NAMED = operation(parameters=[_NAME])
_PATH = "/experiments/{name}"
_OPERATIONS = (
    Operation("PUT", _PATH, "run_experiment", "admin", ExperimentAnswer, (409, *BODY_PROBLEMS), _PUT),
    Operation("GET", _PATH, "experiment", "admin", ExperimentAnswer, (404, 409, *KEY_PROBLEMS), _NAMED),
    Operation("DELETE", _PATH, "end_experiment", "admin", None, (404, 409, *KEY_PROBLEMS), _NAMED),
    Operation(
        "GET",
        f"{_PATH}/groups",
        "experiment_groups",
        "admin",
        ExperimentGroupsAnswer,
        (404, 409, *KEY_PROBLEMS),
        _NAMED,
    ),
)


class ExperimentRoutes:
    """Handlers of experiments; one runs at a time.

    Args:
        keys: of the admin routes.
        active_bundle: the bundle that answers.
        operator_state: the running experiment, the same on all replicas.
        bundles: loads the bundles of the arms.
        arms: checks whether bundles fit the defaults of their arms.
        store: has the counts; None: outcomes are off.
        audit: gets an entry for every change.
        log: the service's logger.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        operator_state: OperatorState,
        bundles: ExperimentBundles,
        arms: Arms,
        store: OutcomeStore | None,
        audit: AuditLog,
        log: FilteringBoundLogger,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._operator_state = operator_state
        self._bundles = bundles
        self._arms = arms
        self._given_store = store
        self._audit = audit
        self._log = log

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def run_experiment(self, request: Request) -> Response:
        """Run an experiment on all replicas; the same one again changes nothing."""
        admit(request, self._keys)
        self._active_bundle.admit()
        name, body = _name(request), await read_json(request)
        asked = validate(ExperimentRequest, body)
        store = self._store
        await self._operator_state.sync()
        running = self._operator_state.experiment
        experiment = self._experiment(name, asked, running)
        if running is not None and running != experiment:
            raise other_runs(running, experiment)
        await self._check_new(experiment, store)
        if running is None:
            self._arms.check(experiment)
            await self._audit.note(request, "run experiment", name)
            await self._bundles.start(experiment, partial(self._arms.check, experiment))
            self._log.info("experiment runs", experiment=name)
        await store.describe(name, experiment.to_json())
        return json_response(self._answer(experiment))

    async def experiment(self, request: Request) -> Response:
        """An experiment that runs, or has run lately."""
        admit(request, self._keys)
        return json_response(self._answer(await self._known(_name(request))))

    async def end_experiment(self, request: Request) -> Response:
        """End an experiment on all replicas; its counts stay."""
        admit(request, self._keys)
        name = _name(request)
        await self._operator_state.sync()
        running, definition = self._operator_state.experiment, self._operator_state.definition
        if running is None or running.name != name:
            raise UnknownExperiment(f"no experiment {name} runs")
        await self._audit.note(request, "end experiment", name)
        await self._operator_state.set_experiment(None, instead_of=definition)
        await self._describe(running)
        self._log.info("experiment ended", experiment=name)
        return Response(status_code=204)

    async def experiment_groups(self, request: Request) -> Response:
        """What was counted for an experiment, by arm and group of users."""
        admit(request, self._keys)
        store, experiment = self._store, await self._known(_name(request))
        if experiment is self._operator_state.experiment:
            await self._describe(experiment)
        groups = await experiment_counts(store, experiment.name)
        return json_response({"experiment": self._answer(experiment), "groups": groups})

    async def _describe(self, experiment: Experiment) -> None:
        """Keep the definition of a running experiment for as long as what is counted until now.

        A definition expires so many days after it was kept, as counts do after the last one of each kind.
        """
        if self._given_store is None:
            return
        try:
            await self._given_store.describe(experiment.name, experiment.to_json())
        except OutcomesUnavailable as error:
            self._log.error("experiment not described", experiment=experiment.name, detail=str(error))

    @property
    def _store(self) -> OutcomeStore:
        if self._given_store is None:
            raise Conflict(OFF)
        return self._given_store

    def _experiment(self, name: str, asked: ExperimentRequest, running: Experiment | None) -> Experiment:
        """The experiment that was asked for; an arm without a bundle has the active one where another arm has one."""
        active = self._active_bundle.get().id if any(arm.bundle for arm in asked.arms) else None
        same = running is not None and running.name == name
        if same and running is not None and running.bundles:
            # A repeated request means the bundles of the running experiment, also after another one became active.
            known = {arm.name: arm.bundle for arm in running.arms}
        else:
            known = {}
        arms = tuple(
            Arm(
                arm.name,
                arm.share,
                arm.bundle or known.get(arm.name, active),
                {} if arm.defaults is None else arm.defaults.as_json(),
            )
            for arm in asked.arms
        )
        salt = asked.salt or (running.salt if same and running is not None else secrets.token_hex(16))
        return Experiment(name, salt, arms, asked.interleave)

    async def _check_new(self, experiment: Experiment, store: OutcomeStore) -> None:
        """Refuse a name under which another experiment was counted: the counts of both would mix.

        Raises:
            Conflict: the name was used.
            OutcomesUnavailable: the store does not answer.
        """
        running = self._operator_state.experiment
        known = await store.description(experiment.name)
        if known is not None and running is None:
            raise Conflict(
                f"an experiment {experiment.name} has run lately, and its counts are kept; choose another name"
            )

    async def _known(self, name: str) -> Experiment:
        """The experiment, as it is on all replicas; one that runs here is known in an outage of the store, too.

        Raises:
            Conflict: outcomes are off, and it does not run.
            OutcomesUnavailable: the store does not answer.
            UnknownExperiment: there is none.
        """
        with contextlib.suppress(OperatorStateUnavailable):
            await self._operator_state.sync()
        running = self._operator_state.experiment
        if running is not None and running.name == name:
            return running
        stored = await self._store.description(name)
        if stored is None:
            raise UnknownExperiment(f"no experiment {name} runs, or has run in the last 90 days")
        return Experiment.from_json(stored)

    def _answer(self, experiment: Experiment) -> dict[str, Any]:
        running = self._operator_state.experiment
        if running is None or running.name != experiment.name:
            state, reason = "ended", None
        else:
            reason = self._bundles.paused() or self._arms.unfit()
            state = "running" if reason is None else "paused"
        return {**experiment.as_json(), "state": state, "reason": reason}


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    if not re.fullmatch(NAME, name):
        rule = "must have 1 to 32 small letters, digits and hyphens, no hyphen first"
        raise RuleBroken([RuleViolation("name", shown(name), rule)])
    return name
