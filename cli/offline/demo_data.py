"""`vlm2rec data make-demo`: the made catalogue, written as a data set like any user's."""

from pathlib import Path
from typing import Annotated

import typer


def make_demo(
    directory: Annotated[Path, typer.Argument(help="Where to write the data set.")],
    items: Annotated[int, typer.Option(help="Items in the catalogue.")] = 600,
    users: Annotated[int, typer.Option(help="Training users, each with 5 to 20 events.")] = 4_000,
    evaluation_users: Annotated[int, typer.Option(help="Fresh users, for evaluation only.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Another seed makes another catalogue, world and users.")] = 0,
    text_taste: Annotated[float, typer.Option(help="How strongly users choose by what only texts tell.")] = 2.5,
    image_taste: Annotated[float, typer.Option(help="How strongly users choose by what only pictures show.")] = 2.5,
    theme: Annotated[
        float, typer.Option(help="0 … 1: how far text and picture tell one shared theme; 0 is independent.")
    ] = 0.0,
) -> None:
    """Make the demo catalogue: pictures, titles, and users with a taste in both; the same options, the same bytes."""
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
            text_taste=text_taste,
            image_taste=image_taste,
            theme=theme,
            progress=lambda step, share: bar.update(task, description=step, completed=share),
        )
    typer.echo(f"{directory}: {items} items, {users} users, {evaluation_users} users for evaluation")
