"""`vlm2rec data make-demo`: writes the demo catalogue as a data set."""

import warnings
from pathlib import Path
from typing import Annotated

import typer


def make_demo(
    directory: Annotated[Path, typer.Argument(help="The data set to write.")],
    items: Annotated[int, typer.Option(help="Items in the catalogue.")] = 600,
    users: Annotated[int, typer.Option(help="Training users, each with 5 to 20 events.")] = 4_000,
    evaluation_users: Annotated[int, typer.Option(help="Further users, for evaluation only.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Another seed makes another catalogue, world and users.")] = 0,
    text_preference: Annotated[
        float, typer.Option(help="Strength of the users' preferences that only texts reveal.")
    ] = 2.5,
    image_preference: Annotated[
        float, typer.Option(help="Strength of the users' preferences that only pictures reveal.")
    ] = 2.5,
    theme: Annotated[float, typer.Option(help="0 … 1: correlation of text and picture; 0 is independent.")] = 0.0,
    text_taste: Annotated[float | None, typer.Option(hidden=True)] = None,
    image_taste: Annotated[float | None, typer.Option(hidden=True)] = None,
) -> None:
    """Make the demo catalogue: pictures, titles and simulated users. The same options give the same bytes."""
    from rich.progress import Progress

    from demo.build import build_demo
    from index.machine.disk import translate_disk_errors

    with translate_disk_errors(directory, again="start the same command again"), Progress(transient=True) as bar:
        task = bar.add_task("making the catalogue", total=1.0)
        build_demo(
            directory,
            items=items,
            users=users,
            evaluation_users=evaluation_users,
            seed=seed,
            text_preference=_renamed("text", text_preference, text_taste),
            image_preference=_renamed("image", image_preference, image_taste),
            theme=theme,
            progress=lambda step, share: bar.update(task, description=step, completed=share),
        )
    typer.echo(f"{directory}: {items} items, {users} users, {evaluation_users} users for evaluation")


def _renamed(modality: str, value: float, former: float | None) -> float:
    """The value of an option, or that of its former name with a warning."""
    if former is None:
        return value
    warnings.warn(f"--{modality}-taste is now --{modality}-preference", FutureWarning, stacklevel=2)
    return former
