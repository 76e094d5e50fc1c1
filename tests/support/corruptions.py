"""Seeded corruptions of a bundle; each must be refused by name, be harmless or give a sound bundle.

    python tests/support/corruptions.py GOOD OTHER FIRST COUNT

Prints a line before and a JSON line after each seed, so that a crash or a hang names its seed. The tests run it as a
subprocess, because a native parser that dies takes its process along.

A plain corruption must be refused or leave every answer as it was. In a *sealed* one the manifest is made to fit the
damage, as if somebody had built the bundle so; it may also give another bundle, as long as that one is sound: ids map
both ways, scores are the exact ones of its own vectors, everything is finite and in range. FAISS files are never
sealed: FAISS does not survive hostile files, which is why it only ever sees one whose hash fits.
"""

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import index.bundle.integrity
from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path, write_stamp
from index.bundle.manifest import MANIFEST_FILE, REQUIRED_FILES, Manifest
from index.errors import BundleError, IndexingError

LONGEST_S = 30
NOBODY = 65_534
HUGE = 1 << 40
ODD_VALUES = (None, True, -1, 0, 1, 2, 299, 301, 2**31, 2**63, 10**40, 0.5, "", "x", "../x", [], [[]], {}, {"a": 1})
NAMES = (MANIFEST_FILE, *REQUIRED_FILES)


class Wrong(Exception):
    """A corruption did what none may do."""


Damage = Callable[[random.Random, Path, Path], None]


def flip(chance: random.Random, path: Path, _other: Path) -> None:
    """One to eight bits."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def overwrite(chance: random.Random, path: Path, _other: Path) -> None:
    """A stretch of random bytes, of zeros or of ones."""
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    size = min(chance.randrange(1, 400), len(content) - start)
    content[start : start + size] = chance.choice([chance.randbytes(size), bytes(size), b"\xff" * size])
    path.write_bytes(content)


def edit_header(chance: random.Random, path: Path, _other: Path) -> None:
    """Something near the beginning or the end, where formats keep what they say about themselves."""
    content = bytearray(path.read_bytes())
    reach = min(len(content), 600)
    start = chance.choice([0, len(content) - reach])
    digits = [place for place in range(start, start + reach) if 0x30 <= content[place] <= 0x39]
    for _ in range(chance.choice([1, 2, 4])):
        if digits and chance.random() < 0.5:
            content[chance.choice(digits)] = chance.randrange(0x30, 0x3A)
        else:
            content[start + chance.randrange(reach)] = chance.choice(
                [0, 1, 0x7F, 0xFF, 0x27, 0x28, chance.randrange(256)]
            )
    path.write_bytes(content)


def edit_words(chance: random.Random, path: Path, _other: Path) -> None:
    """An aligned 4- or 8-byte number, which is what offsets, lengths and counts are."""
    content = bytearray(path.read_bytes())
    size = chance.choice([4, 8])
    if len(content) >= size:
        place = chance.randrange(len(content) // size) * size
        number = chance.choice([0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1])
        content[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    path.write_bytes(content)


def truncate(chance: random.Random, path: Path, _other: Path) -> None:
    """The end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: chance.choice([0, 1, len(content) - 1, chance.randrange(len(content))])])


def extend(chance: random.Random, path: Path, _other: Path) -> None:
    """Something is appended, or everything twice."""
    content = path.read_bytes()
    path.write_bytes(content + chance.choice([b"\0", bytes(64), chance.randbytes(100), content]))


def swap(_chance: random.Random, path: Path, other: Path) -> None:
    """The file of that name of another bundle."""
    path.write_bytes((other / path.name).read_bytes())


def confuse(chance: random.Random, path: Path, _other: Path) -> None:
    """Another file of the same bundle."""
    path.write_bytes((path.parent / chance.choice(NAMES)).read_bytes())


IN_PLACE: tuple[Damage, ...] = (flip, overwrite, edit_header, edit_words, truncate, extend, swap, confuse)


def remove(_chance: random.Random, path: Path, _other: Path) -> None:
    """The file is not there."""
    path.unlink()


def link(chance: random.Random, path: Path, other: Path) -> None:
    """A link to elsewhere, to nothing, to itself, to a device."""
    whole = path.parent.parent / "whole"
    path.rename(whole)
    path.symlink_to(chance.choice([whole, other / path.name, path, Path("/dev/zero"), Path("/nowhere")]))


def other_kind(chance: random.Random, path: Path, _other: Path) -> None:
    """A directory or a named pipe instead of the file."""
    path.unlink()
    chance.choice([os.mkdir, os.mkfifo])(path)


def make_huge(_chance: random.Random, path: Path, _other: Path) -> None:
    """A tebibyte of nothing behind the content, which takes no space."""
    os.truncate(path, HUGE)


def spoil_stamp(chance: random.Random, path: Path, _other: Path) -> None:
    """The stamp lies: garbage, a pipe, a directory, endless, or in praise of a damaged file."""
    stamp = stamp_path(path.parent)
    what = chance.choice(["garbage", "pipe", "directory", "huge", "praise"])
    if what == "praise":
        flip(chance, path, path)
        with contextlib.suppress(Exception):
            write_stamp(path.parent, Manifest.read(path.parent))
        index.bundle.integrity._SMALL = 1 << 20
        return
    stamp.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(stamp)
    elif what == "directory":
        stamp.mkdir()
    else:
        stamp.write_bytes(chance.choice([b"[" * 100_000, b"{}", b"null", chance.randbytes(50)]))
        if what == "huge":
            os.truncate(stamp, HUGE)


AROUND: tuple[Damage, ...] = (remove, link, other_kind, make_huge, spoil_stamp)


def lock_away(chance: random.Random, path: Path, _other: Path) -> None:
    """Nobody may read it: the file, or the directory; harmless where it may be read all the same."""
    chance.choice([path, path.parent]).chmod(0)


def edit_manifest(chance: random.Random, bundle: Path) -> str:
    """One value somewhere in the manifest replaced, removed, or one added; says which."""
    raw = json.loads((bundle / MANIFEST_FILE).read_text())
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            places.append((part, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(raw)
    part, key = chance.choice([place for place in places if place != (raw, "content")])
    action = chance.random()
    if action < 0.15:
        del part[key]
    elif action < 0.25 and isinstance(part, dict):
        part[chance.choice(["new", "", "../up", "items.arrow", "a" * 1000])] = chance.choice(ODD_VALUES)
    elif action < 0.5 and isinstance(part[key], int | float):
        part[key] = chance.choice([-part[key], part[key] + 1, part[key] * 1000, float(part[key]), float("nan"), 1e300])
    else:
        part[key] = chance.choice(ODD_VALUES)
    (bundle / MANIFEST_FILE).write_text(json.dumps(raw))
    return f"{key}"


def seal(bundle: Path, name: str | None) -> None:
    """Make the manifest fit a damaged file and itself, knowing only the documented rule for its hash."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        raw = json.loads((bundle / MANIFEST_FILE).read_text())
        if name is not None:
            content = (bundle / name).read_bytes()
            raw["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        kept = {key: value for key, value in raw.items() if key not in {"id", "content", "forced"}}
        canonical = json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
        raw["content"] = hashlib.sha256(canonical).hexdigest()
        raw["id"] = raw["id"][:-6] + raw["content"][:6]
        (bundle / MANIFEST_FILE).write_text(json.dumps(raw))


def corrupt(seed: int, bundle: Path, other: Path) -> tuple[str, bool]:
    """Damage a bundle; says what was done, and whether it was sealed."""
    chance = random.Random(seed)
    if chance.random() < 0.3:  # as a published bundle has one; then no file is so small that it is hashed anyway
        index.bundle.integrity._SMALL = 0
        write_stamp(bundle, Manifest.read(bundle))
    kind = chance.random()
    name = chance.choice(NAMES)
    path = bundle / name
    if kind < 0.15:
        where = edit_manifest(chance, bundle)
        if chance.random() < 0.85:
            seal(bundle, None)
        return f"edit {where} of {MANIFEST_FILE}", True
    if kind < 0.3:
        damage = chance.choice(AROUND)
        damage(chance, path, other)
        return f"{damage.__name__} {name}", False
    if kind < 0.34:
        lock_away(chance, path, other)
        return f"lock_away {name}", False
    damage = chance.choice(IN_PLACE)
    damage(chance, path, other)
    sealed = name not in {"index.faiss", MANIFEST_FILE} and chance.random() < 0.75
    if sealed:
        seal(bundle, name)
    return f"{damage.__name__} {name}", sealed


def answers(bundle: Bundle) -> dict[str, Any]:
    """Everything that a bundle answers about its probes and items, to be compared."""
    queries = bundle.encode(
        [bundle.evaluation_queries.history(probe) for probe in range(len(bundle.evaluation_queries))]
    )
    some = np.arange(len(bundle)) % 3 != 0
    plain, filtered, popular = bundle.search(queries, 10), bundle.search(queries, 10, allowed=some), bundle.popular(20)
    return {
        "queries": queries.tolist(),
        "found": [(part.rows.tolist(), part.scores.tolist()) for part in (plain, filtered, popular)],
        "contributions": bundle.contributions(queries, plain.rows).tolist(),
        "items": [(bundle.ids.id(row), bundle.fields(row)) for row in range(len(bundle))],
        "rows": bundle.ids.rows([bundle.ids.id(row) for row in range(len(bundle))])[0].tolist(),
        "popularity": bundle.popularity.tolist(),
        "missing": bundle.missing.tolist(),
        "indexed": bundle.indexed.tolist(),
        "targets": bundle.evaluation_queries.targets.tolist(),
    }


def check_sound(bundle: Bundle, said: dict[str, Any]) -> None:
    """Hold a bundle to what any bundle promises; raises AssertionError."""
    count = len(bundle)
    assert said["rows"] == list(range(count))
    assert len({item_id for item_id, _ in said["items"]}) == count
    assert bundle.ids.row("no such item") is None
    json.dumps(said, allow_nan=False)
    vectors = bundle.vectors(np.arange(count)).astype(np.float64)
    queries = np.array(said["queries"])
    *found, (popular, _) = said["found"]
    assert len(set(popular[0])) == min(20, count)
    masks = (bundle.indexed, bundle.indexed & (np.arange(count) % 3 != 0))
    for (rows, scores), allowed in zip(found, masks, strict=True):
        for query, own_rows, own_scores in zip(queries, rows, scores, strict=True):
            real = [row for row in own_rows if row >= 0]
            assert len(set(real)) == min(10, int(allowed.sum()))
            assert allowed[real].all()
            exact = vectors[real] @ query
            np.testing.assert_allclose(own_scores[: len(real)], exact, rtol=1e-4, atol=1e-4 * (1 + np.abs(exact).max()))
            assert own_scores == sorted(own_scores, reverse=True)


def judge(bundle: Path, what: str, sealed: bool, good: dict[str, Any]) -> tuple[str, str]:
    """Load a damaged bundle and say how that ended; raises what must not happen."""
    name = what.rpartition(" ")[2]
    try:
        loaded = Bundle.load(bundle, verify="full" if sealed else "stamp")
    except BundleError as error:
        # Against another manifest, or in a locked directory, any file may be the wrong one.
        named = name in str(error) or name == MANIFEST_FILE or what.startswith("lock_away")
        if not sealed and not named:
            raise Wrong(f"the message does not name {name}") from error
        return "refused", str(error)
    try:
        loaded.warm_up()
        said = answers(loaded)
    except IndexingError as error:  # an encoder that fails is found when the bundle is warmed, before it serves
        if not sealed:
            raise Wrong("loaded, but does not answer") from error
        return "refused", f"warm-up: {error}"
    if said == good:
        return "harmless", ""
    if not sealed:
        raise Wrong("loaded, and answers otherwise")
    check_sound(loaded, said)
    return "sound", ""


def one(seed: int, good_path: Path, other: Path, good: dict[str, Any], room: Path) -> dict[str, Any]:
    """Corrupt a copy, judge it, clear up."""
    bundle = room / good_path.name
    shutil.copytree(good_path, bundle)
    for path in bundle.iterdir():
        path.chmod(0o644)
    small = index.bundle.integrity._SMALL
    what, sealed = corrupt(seed, bundle, other)
    root = os.geteuid() == 0
    try:
        signal.alarm(LONGEST_S)
        if root and what.startswith("lock_away"):
            os.seteuid(NOBODY)
        outcome, detail = judge(bundle, what, sealed, good)
    except Exception:  # noqa: BLE001 - whatever it is, it must be shown with its seed
        outcome, detail = "wrong", traceback.format_exc()
    finally:
        signal.alarm(0)
        if root:
            os.seteuid(0)
        index.bundle.integrity._SMALL = small
        bundle.chmod(stat.S_IRWXU)
        for leftover in room.iterdir():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"seed": seed, "what": what, "sealed": sealed, "outcome": outcome, "detail": detail, "peak": peak}


def tell(line: str) -> None:
    """A line that has arrived even if the next corruption kills the process."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Judge COUNT seeds from FIRST on."""
    good_path, other = Path(sys.argv[1]), Path(sys.argv[2])
    first, count = int(sys.argv[3]), int(sys.argv[4])
    good = answers(Bundle.load(good_path))
    with tempfile.TemporaryDirectory() as room:
        Path(room).chmod(0o755)
        for seed in range(first, first + count):
            tell(f"seed {seed}")
            tell(json.dumps(one(seed, good_path, other, good, Path(room))))


if __name__ == "__main__":
    main()
