"""The learning-rate schedule by hand, and under PyTorch's scheduler after an interruption."""

import pytest
import torch

from training.runs.learning_rate import LearningRateSchedule

SCHEDULES = [
    LearningRateSchedule(3, "cosine", decay_start=2.5, decay_steps=9),
    LearningRateSchedule(1, "linear", decay_start=0.5, decay_steps=11),
    LearningRateSchedule(4, "constant", decay_start=3.5, decay_steps=8),
    LearningRateSchedule(5, "cosine", decay_start=0, decay_steps=12, floor=0.1),
]


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups)
    for group in groups:
        group["params"][0].grad = torch.zeros(1)
    return optimizer


def test_the_factors_by_hand() -> None:
    schedule = LearningRateSchedule(2, "linear", decay_start=2, decay_steps=4, floor=0.2)
    assert [schedule.factor(step) for step in range(8)] == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("resumed_at", [0, 1, 2, 7, 11])
def test_every_group_has_its_peak_times_the_factor(schedule: LearningRateSchedule, resumed_at: int) -> None:
    optimizer = optimizer_of(0.3, 0.007)
    scheduler = schedule.attach(optimizer, steps_done=resumed_at)
    for step in range(resumed_at, 12):
        assert [group["lr"] for group in optimizer.param_groups] == [
            0.3 * schedule.factor(step), 0.007 * schedule.factor(step)
        ]  # fmt: skip
        optimizer.step()
        scheduler.step()


def test_it_can_be_attached_again_in_the_middle() -> None:
    schedule, optimizer = SCHEDULES[0], optimizer_of(0.3)
    scheduler = schedule.attach(optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    SCHEDULES[3].attach(optimizer, steps_done=2)
    assert optimizer.param_groups[0]["lr"] == 0.3 * SCHEDULES[3].factor(2)
