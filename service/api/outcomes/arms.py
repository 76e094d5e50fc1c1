"""Chooses the arm of a request, and applies what the arm says."""

from dataclasses import dataclass
from typing import TypeVar

from index.bundle.bundle import Bundle
from index.errors import FilterError
from index.filters.filters import compile_filter
from service.api.outcomes.experiment_models import ArmDefaults
from service.api.requests.request_models import RecommendRequest
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.errors import RuleBroken, RuleViolation
from service.experiments.experiment import Arm, Experiment

_Params = TypeVar("_Params", bound=RecommendRequest)


@dataclass(frozen=True, slots=True, eq=False)
class RequestArm:
    """The arm of one request.

    Attributes:
        label: experiment and arm, as in ``prices/control``.
        bundle: the one that answers.
        defaults: fields of requests that do not set them.
    """

    label: str
    bundle: Bundle
    defaults: ArmDefaults

    def applied(self, params: _Params) -> _Params:
        """The request with the defaults of the arm."""
        given = self.defaults.given
        missing = given.keys() - params.model_fields_set
        return params.model_copy(update={name: given[name] for name in missing}) if missing else params


@dataclass(frozen=True, slots=True, eq=False)
class InterleavedArms:
    """Both arms of a request whose answer has items of both.

    Attributes:
        label: experiment and both arms, as in ``prices/control+new``.
        arms: the control first.
        salt: of the experiment.
        owner: the user or session who asks.
    """

    label: str
    arms: tuple[RequestArm, RequestArm]
    salt: str
    owner: str


class Arms:
    """Divides the users of requests among the arms of the running experiment.

    If a bundle of any arm is not in memory, or does not fit the defaults of its arm, users are in no arm at all: a
    comparison with some arms missing would be biased.

    Args:
        operator_state: has the experiment.
        active_bundle: the bundles that may answer.
    """

    def __init__(self, operator_state: OperatorState, active_bundle: ActiveBundle) -> None:
        self._operator_state = operator_state
        self._active_bundle = active_bundle
        self._experiment: Experiment | None = None
        self._defaults: dict[str, ArmDefaults] = {}
        self._bundle_ids: tuple[str, ...] = ()
        self._unfit: str | None = None

    @property
    def among_users(self) -> bool:
        """Whether an experiment runs; without one all users are in no arm."""
        return self._operator_state.experiment is not None

    def of(self, user_id: str | None) -> RequestArm | InterleavedArms | None:
        """The arm of a user, or both; None where no experiment has a part in this request."""
        experiment = self._operator_state.experiment
        if experiment is None or user_id is None:
            return None
        bundles = self._bundles(experiment)
        if bundles is None:
            return None
        if experiment.interleave:
            first, second = (self._request_arm(experiment, arm, bundles) for arm in experiment.arms)
            return InterleavedArms(experiment.interleaved_label, (first, second), experiment.salt, user_id)
        return self._request_arm(experiment, experiment.arm_of(user_id), bundles)

    def label_of(self, user_id: str) -> str | None:
        """Experiment and arm of a user, or both arms; None as for :meth:`of`."""
        arm = self.of(user_id)
        return None if arm is None else arm.label

    def check(self, experiment: Experiment) -> None:
        """Check that an experiment fits its bundles; those that are not in memory are passed over.

        Raises:
            RuleBroken: a bundle lacks a slot that its arm names.
            FilterError: the filter of an arm does not match the metadata of its bundle.
        """
        for arm in experiment.arms:
            bundle = self._bundle_of(arm)
            if bundle is not None:
                check_defaults(bundle, _defaults_of(arm), arm.name)

    def unfit(self) -> str | None:
        """Why the running experiment divides no users, though its bundles are in memory; None: it does."""
        experiment = self._operator_state.experiment
        if experiment is None or self._bundles(experiment) is not None or self._unfit is None:
            return None
        return f"{self._unfit}. All users get the active bundle and are in no arm"

    def _request_arm(self, experiment: Experiment, arm: Arm, bundles: dict[str, Bundle]) -> RequestArm:
        return RequestArm(experiment.label(arm), bundles[arm.name], self._defaults[arm.name])

    def _bundles(self, experiment: Experiment) -> dict[str, Bundle] | None:
        """The bundle of each arm; None if the experiment is paused here."""
        found: dict[str, Bundle] = {}
        for arm in experiment.arms:
            bundle = self._bundle_of(arm)
            if bundle is None:
                return None
            found[arm.name] = bundle
        ids = tuple(bundle.id for bundle in found.values())
        if experiment is not self._experiment or ids != self._bundle_ids:
            self._experiment, self._bundle_ids = experiment, ids
            self._unfit = self._read_defaults(experiment, found)
        return found if self._unfit is None else None

    def _bundle_of(self, arm: Arm) -> Bundle | None:
        if arm.bundle is not None:
            return self._active_bundle.named(arm.bundle)
        activation = self._active_bundle.activation
        return None if activation is None else activation.bundle

    def _read_defaults(self, experiment: Experiment, bundles: dict[str, Bundle]) -> str | None:
        """Read the defaults of all arms; why a bundle cannot answer with them, None if all can."""
        self._defaults = {}
        for arm in experiment.arms:
            try:
                self._defaults[arm.name] = defaults = _defaults_of(arm)
                check_defaults(bundles[arm.name], defaults, arm.name)
            except (FilterError, RuleBroken) as error:
                return f"bundle {bundles[arm.name].id} does not fit arm {arm.name} ({error})"
            except ValueError:
                return f"arm {arm.name} has defaults that this version does not know"
        return None


def _defaults_of(arm: Arm) -> ArmDefaults:
    return ArmDefaults.model_validate(dict(arm.defaults))


def check_defaults(bundle: Bundle, defaults: ArmDefaults, name: str) -> None:
    """Check that a bundle can answer with the defaults of an arm.

    Args:
        bundle: that answers.
        defaults: of the arm.
        name: of the arm.

    Raises:
        RuleBroken: it lacks a slot.
        FilterError: the filter does not match its metadata.
    """
    known = bundle.layout.names
    for slot in defaults.slot_weights or ():
        if slot not in known:
            rule = f"must be one of the slots {', '.join(known)}"
            raise RuleBroken([RuleViolation(f"arms.{name}.defaults.slot_weights", slot[:60], rule)])
    if defaults.filter is not None:
        compile_filter(bundle.metadata.slice(0, 1), defaults.filter.clauses())  # a row shows fields and types
