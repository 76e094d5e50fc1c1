"""Which file of interactions workers of Ray read."""

from pathlib import Path

from cli.offline.ray_shards import other_interactions
from training.data.dataset import load_dataset


def test_workers_find_the_interactions_of_the_data_set_and_get_the_path_of_others(tmp_path: Path) -> None:
    events = "user_id,item_id,timestamp\nu,a,1\nu,b,2\n"
    (tmp_path / "items.csv").write_text("item_id,title\na,Mug\nb,Bowl\n")
    (tmp_path / "may.csv").write_text(events)
    others = load_dataset(tmp_path, interactions=tmp_path / "may.csv")
    assert other_interactions(others) == (tmp_path / "may.csv").resolve()
    (tmp_path / "interactions.csv").write_text(events)
    assert other_interactions(load_dataset(tmp_path)) is None
