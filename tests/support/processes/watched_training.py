"""Code that runs in a training process first, so that a test can stop it at a step or read its refusal."""

from pathlib import Path

_HOLDING = """
import time
from training.finetune.run_log import RunLog
write = RunLog.write
def holding(self, step, rest):
    write(self, step, rest)
    while {step} <= step < {steps}:
        time.sleep(.01)
RunLog.write = holding
"""
_RECORDING = """
import cli.main
from training.finetune import trainer
from training.errors import ConfigError
train = trainer.train_vlm
def recording(*values, **options):
    try:
        return train(*values, **options)
    except ConfigError as error:
        with open({path!r}, "a") as file:
            file.write(str(error) + chr(10))
        raise
trainer.train_vlm = recording
"""


def holding(step: int, steps: int) -> str:
    """Code after which a training of so many steps goes no further than a step."""
    return _HOLDING.format(step=step, steps=steps)


def recording_refusals(path: Path) -> str:
    """Code after which a training adds the message of its refusal to a file."""
    return _RECORDING.format(path=str(path))
