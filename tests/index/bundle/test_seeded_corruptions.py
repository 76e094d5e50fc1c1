"""Thousands of seeded corruptions of a bundle: none crashes, hangs or gives a wrong result."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from index.build.build import build_bundle
from index.bundle.index_spec import IndexSpec

FAST, ALL = 300, 3_000
WORKERS = 2
GROWTH = 128 << 20
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def other(tmp_path_factory, make_table, make_evaluation_queries, make_encoder):
    """A bundle of the same shapes in which every file is another."""
    room = tmp_path_factory.mktemp("other")
    table = make_table(300, seed=1)
    titles = [f"thing {row}" for row in range(300)]
    metadata = table.metadata.set_column(0, "title", [titles])
    record = table.missing_record()
    record[7, 1] = 2
    changed = replace(table, metadata=metadata, popularity=table.popularity[::-1].copy(), missing=record)
    return build_bundle(
        changed,
        make_encoder(room / "encoder.onnx", max_history=9),
        make_evaluation_queries(300, seed=2),
        room,
        IndexSpec(kind="flat", threads=1),
        now=datetime(2026, 11, 22, tzinfo=UTC),
    )


def run(good: Path, other: Path, first: int, count: int) -> list[dict[str, object]]:
    """Judge the seeds in worker processes; a worker that dies or hangs is a failure that names its seed."""
    step = -(-count // WORKERS)
    script = ROOT / "tests" / "support" / "corruptions.py"
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                str(script),
                str(good),
                str(other),
                str(start),
                str(min(step, first + count - start)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for start in range(first, first + count, step)
    ]
    judged = []
    for worker in workers:
        lines = worker.communicate()[0].splitlines()
        assert worker.returncode == 0, f"exit code {worker.returncode} in {lines[-1] if lines else 'the beginning'}"
        own = [json.loads(line) for line in lines if line.startswith("{")]
        assert own[-1]["peak"] - own[0]["peak"] < GROWTH
        judged += own
    assert [entry["seed"] for entry in judged] == list(range(first, first + count))
    return judged


def check(judged: list[dict[str, object]]) -> None:
    wrong = [entry for entry in judged if entry["outcome"] == "wrong"]
    assert not wrong, f"{len(wrong)}: {wrong[0]['seed']} {wrong[0]['what']}\n{wrong[0]['detail']}"
    # Were hardly any refused, or none judged by its content, the corruptions would show nothing.
    counts = Counter((entry["sealed"], entry["outcome"]) for entry in judged)
    assert counts[False, "refused"] > len(judged) / 4
    assert counts[True, "refused"] > len(judged) / 5
    assert counts[True, "sound"] > 0


def test_the_first_corruptions(built, other):
    check(run(built, other, 0, FAST))


@pytest.mark.slow
def test_all_corruptions(tmp_path, other, make_table, make_evaluation_queries):
    """With a graph as the index and a real transformer as the encoder, for their parsers' sake."""
    import torch

    from training.encoder.model import SequenceEncoder
    from training.encoder.onnx_export import export_encoder

    table = make_table()
    torch.manual_seed(0)
    network = SequenceEncoder(table.layout.dim, 12, width=8, layers=2, heads=2).eval()
    export_encoder(network, table.layout, tmp_path / "encoder.onnx")
    spec = IndexSpec(kind="hnsw", threads=1)
    good = build_bundle(table, tmp_path / "encoder.onnx", make_evaluation_queries(), tmp_path / "bundles", spec)
    check(run(good, other, FAST, ALL))
