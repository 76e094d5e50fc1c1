"""Builds the demo data set from a seed.

It holds ``items.csv`` (title and text contain brand and material; the metadata columns contain all attributes, for
filters), ``images/``, ``interactions.csv`` of the training users, ``evaluation.parquet`` (the same columns) of further
users of the same world, and ``demo.json`` with the arguments of the build.
"""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from demo.catalogue import ATTRIBUTES, IMAGE_ATTRIBUTES, Catalogue, make_catalogue
from demo.errors import DemoError
from demo.pictures import draw_picture, encode
from demo.users import Behaviour, Events, make_world, simulate

DESCRIPTION_FILE = "demo.json"
EVALUATION_FILE = "evaluation.parquet"
_MOST_USERS = 10_000_000
_VERSION = 1
_CATALOGUE, _WORLD, _TRAINING, _EVALUATION, _PICTURES = range(5)
_PICTURE_ATTRIBUTES = ("category", *IMAGE_ATTRIBUTES)

Progress = Callable[[str, float], None]
"""Called with the name of the step and its finished share, 0 … 1."""


@dataclass(frozen=True)
class _Plan:
    """Arguments of a build."""

    items: int
    users: int
    evaluation_users: int
    seed: int
    without_text: int
    without_image: int
    behaviour: Behaviour

    def rng(self, *stream: int) -> np.random.Generator:
        """Random generator of one step; a step never changes the numbers of another."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=stream))

    def description(self) -> dict[str, Any]:
        return {"version": _VERSION, **asdict(self)}


def build_demo(
    directory: Path,
    *,
    items: int = 600,
    users: int = 4_000,
    evaluation_users: int = 20_000,
    seed: int = 0,
    text_preference: float = 2.5,
    image_preference: float = 2.5,
    transition: float = 1.5,
    popularity: float = 0.8,
    theme: float = 0.0,
    without_text: int = 6,
    without_image: int = 6,
    progress: Progress = lambda _step, _share: None,
) -> Path:
    """Build the demo data set; the same arguments give the same bytes on one installation.

    It is written beside the directory and renamed, so an interrupted build leaves no partial data set. The same demo is
    kept, another demo is replaced, and any other non-empty directory is refused.

    Args:
        directory: of the data set.
        items: size of the catalogue, at least 1.
        users: training users, at least 1; each has 5 to 20 events.
        evaluation_users: further users, for evaluation only; 0 leaves ``evaluation.parquet`` empty.
        seed: not negative; another seed makes another catalogue, world and users.
        text_preference: strength of the preferences for brand and material, which only texts contain; 0 makes texts
            useless.
        image_preference: strength of the preferences for colour, shape and pattern, which only pictures contain.
        transition: log odds that a category adds to the two categories that follow it.
        popularity: standard deviation of the items' log popularity.
        theme: 0 … 1, correlation of text and picture of an item, and of both preferences of a user, by a shared theme.
            At 0 the modalities are independent; near 1 either is sufficient, so a model may drop one.
        without_text: items without title and text.
        without_image: items without a picture.
        progress: called with the progress of each step.

    Returns:
        ``directory``.

    Raises:
        DemoError: an argument is out of bounds, or the directory cannot be written or is not a demo.
    """
    if seed < 0:
        raise DemoError(f"seed must be at least 0, got {seed}")
    for name, value, fewest in (("users", users, 1), ("evaluation_users", evaluation_users, 0)):
        if not fewest <= value <= _MOST_USERS:
            raise DemoError(f"{name} must lie in {fewest} … {_MOST_USERS:,}, got {value}")
    behaviour = Behaviour(text_preference, image_preference, transition, popularity, theme)
    plan = _Plan(items, users, evaluation_users, seed, without_text, without_image, behaviour)
    try:
        if not _holds(directory, plan):
            _write(directory, plan, progress)
    except OSError as error:
        raise DemoError(
            f"{directory}: cannot be written ({error.strerror or error}); choose another directory"
        ) from error
    return directory


def _holds(directory: Path, plan: _Plan) -> bool:
    """Whether the directory already holds this demo.

    Raises:
        DemoError: it holds files that are not of a demo.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    try:
        found = json.loads((directory / DESCRIPTION_FILE).read_text())
    except (OSError, ValueError) as error:
        raise DemoError(
            f"{directory}: is not empty and holds no {DESCRIPTION_FILE}, so it is not touched; choose another directory"
        ) from error
    return bool(found == plan.description())


def _write(directory: Path, plan: _Plan, progress: Progress) -> None:
    """Write the demo beside the directory, then put it in its place."""
    partial = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _fill(partial, plan, progress)
        _replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(directory: Path, plan: _Plan, progress: Progress) -> None:
    catalogue = make_catalogue(
        plan.rng(_CATALOGUE),
        plan.items,
        theme=plan.behaviour.theme,
        without_text=plan.without_text,
        without_image=plan.without_image,
    )
    _write_items(directory / "items.csv", catalogue)
    _draw_pictures(directory, catalogue, plan, progress)
    world = make_world(plan.rng(_WORLD), catalogue, plan.behaviour)
    training = simulate(
        plan.rng(_TRAINING), world, plan.users, progress=lambda done: progress("training users", done / plan.users)
    )
    columns = _columns(catalogue, training, "user", plan.users)
    with (directory / "interactions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    fresh = simulate(
        plan.rng(_EVALUATION),
        world,
        plan.evaluation_users,
        progress=lambda done: progress("evaluation users", done / plan.evaluation_users),
    )
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    evaluation = pa.table(_columns(catalogue, fresh, "guest", plan.evaluation_users), schema=schema)
    pq.write_table(evaluation, directory / EVALUATION_FILE, compression="zstd")
    (directory / DESCRIPTION_FILE).write_text(json.dumps(plan.description(), indent=2) + "\n")


def _write_items(path: Path, catalogue: Catalogue) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["item_id", "title", "text", "image", *ATTRIBUTES, "price"])
        for row in range(len(catalogue)):
            image = None if catalogue.without_image[row] else _image_name(catalogue, row)
            values = [catalogue.value(row, name) for name in ATTRIBUTES]
            price = f"{catalogue.prices[row]:.2f}"
            writer.writerow([catalogue.item_id(row), catalogue.title(row), catalogue.text(row), image, *values, price])


def _image_name(catalogue: Catalogue, row: int) -> str:
    return f"images/{catalogue.item_id(row)}.jpg"


def _draw_pictures(directory: Path, catalogue: Catalogue, plan: _Plan, progress: Progress) -> None:
    (directory / "images").mkdir()
    for row in range(len(catalogue)):
        if not catalogue.without_image[row]:
            category, colour, shape, pattern = (catalogue.value(row, name) for name in _PICTURE_ATTRIBUTES)
            picture = draw_picture(category, colour, shape, pattern, plan.rng(_PICTURES, row))
            (directory / _image_name(catalogue, row)).write_bytes(encode(picture))
        progress("pictures", (row + 1) / len(catalogue))


def _columns(catalogue: Catalogue, events: Events, prefix: str, users: int) -> dict[str, list[Any]]:
    names = [f"{prefix}-{user + 1:05d}" for user in range(users)]
    item_ids = [catalogue.item_id(row) for row in range(len(catalogue))]
    return {
        "user_id": [names[user] for user in events.users.tolist()],
        "item_id": [item_ids[row] for row in events.items.tolist()],
        "timestamp": events.times.tolist(),
    }


def _replace(partial: Path, directory: Path) -> None:
    """Rename the new data set; an older one is renamed before and removed after."""
    old = directory.with_name(f"{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
