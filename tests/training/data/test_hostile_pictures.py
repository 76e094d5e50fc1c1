"""Pictures that are made to harm: other programs are not run, and no small file takes minutes to decode."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from training.data.picture_reader import MAX_SCANS, decoding_has_changed, open_picture
from training.errors import PictureError

WANTED = 64 * 64
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
SCAN = b"\xff\xda"


def iptc_record(content: bytes) -> bytes:
    """A record of a news agency; Pillow opens what is in it, whatever format that is of."""
    fields = [((3, 60), b"\1\0"), ((3, 20), b"\0\x0a"), ((3, 30), b"\0\x0a"), ((3, 120), b"\5")]
    fields += [((8, 10), content), ((8, 11), b"-")]
    return b"".join(b"\x1c" + bytes(tag) + struct.pack(">H", len(value)) + value for tag, value in fields)


def test_postscript_in_a_record_of_another_format_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jpg"
    path.write_bytes(iptc_record(POSTSCRIPT))
    run: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **_: run.append(args) or Image.new("L", (1, 1)))
    with pytest.raises(PictureError, match="cannot identify"):
        open_picture(path, WANTED)
    with path.open("rb") as file:
        decoding_has_changed(file)
    assert not run


def jpeg(scans: int) -> bytes:
    """A progressive JPEG of 256 × 256 pixels whose last scan is repeated, so that it has so many."""
    content = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole[whole.rindex(SCAN) : -2]
    return whole[:-2] + last * (scans - whole.count(SCAN)) + whole[-2:]


def texture(content: bytes) -> bytes:
    """A texture of 256 × 256 pixels that is stored as a JPEG."""
    head = b"BLP1" + struct.pack("<iIIIiI", 0, 0, 256, 256, 0, 0)
    return head + struct.pack("<33I", len(head) + 132, *[0] * 15, len(content), *[0] * 15, 0) + content


@pytest.mark.parametrize("stored", [jpeg, lambda scans: texture(jpeg(scans))], ids=["jpeg", "texture"])
def test_a_jpeg_of_endless_scans_is_refused_undecoded(tmp_path: Path, stored: Callable[[int], bytes]) -> None:
    # libjpeg-turbo's report LJT-01-003: a scan of ten bytes takes as long as one of all pixels.
    path = tmp_path / "p"
    path.write_bytes(stored(MAX_SCANS))
    assert open_picture(path, WANTED).size == (256, 256)
    path.write_bytes(stored(MAX_SCANS + 1))
    with pytest.raises(PictureError, match=f"^a JPEG may have at most {MAX_SCANS} scans; save it anew$"):
        open_picture(path, WANTED)


def test_what_looks_like_a_scan_outside_the_picture_does_not_count(tmp_path: Path) -> None:
    path, marks = tmp_path / "p.jpg", (SCAN + b"\0\4") * 1_000
    Image.radial_gradient("L").save(path, comment=marks)  # as in the thumbnail of a camera
    path.write_bytes(path.read_bytes() + marks)  # as in the film that a telephone appends
    assert open_picture(path, WANTED).size == (256, 256)


@pytest.mark.parametrize("rest", [SCAN, b"\xff\xe0\xff\xff", b"\xff\xe0\0\0", b"\xff" * 2_000_000 + b"\0"])
def test_scans_of_a_damaged_jpeg_are_counted_at_once(tmp_path: Path, rest: bytes) -> None:
    path, whole = tmp_path / "p.jpg", jpeg(20)
    path.write_bytes(whole[: whole.rindex(SCAN)] + rest)
    with pytest.raises(PictureError):
        open_picture(path, WANTED)
