"""Print what an image needs, from pyproject.toml: the dependencies and those of the extras named as arguments."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
unknown = [name for name in sys.argv[1:] if name not in extras]
if unknown:
    sys.exit(f"requirements: {', '.join(unknown)}: no such extra; ENGINE is cpu or gpu")
lines = [*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])]
sys.stdout.write("\n".join(lines) + "\n")
