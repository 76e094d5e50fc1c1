"""Reading the pointer of an object store: by several threads, and beside a directory of copies that takes no writes."""

import errno
import os

import pytest

from index.bundle.store import bundle_cache
from index.bundle.store.object_store import ObjectContent


def test_a_thread_that_is_answered_late_goes_on_with_the_newer_pointer(opened, bundles, s3, monkeypatch):
    opened().publish(bundles[0])
    reader = opened("b")
    reader.current()
    opened().publish(bundles[1])
    whole = reader._polled.read

    def answered_late(*arguments: object, **options: object) -> ObjectContent | None:
        found = whole(*arguments, **options)
        monkeypatch.setattr(reader._polled, "read", whole)
        opened().publish(bundles[2])
        assert reader.current() == bundles[2].name  # another thread
        return found

    monkeypatch.setattr(reader._polled, "read", answered_late)
    assert reader.current() == bundles[2].name
    assert reader.last_pointer().pointer.current == bundles[2].name
    assert opened("b").last_pointer().pointer.current == bundles[2].name


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_pointer_that_cannot_be_saved_is_used_and_saved_later(opened, bundles, s3, monkeypatch, code):
    tries = []

    def refused(*_: object) -> None:
        tries.append(code)
        raise OSError(code, os.strerror(code))

    opened().publish(bundles[0])
    reader = opened("b")
    with monkeypatch.context() as patched:
        patched.setattr(bundle_cache, "write_durably", refused)
        assert reader.current() == bundles[0].name
        opened().publish(bundles[1])
        assert reader.current() == reader.current() == bundles[1].name
        said = reader.save_error
        assert os.strerror(code) in said
        assert reader.current() == bundles[1].name
        assert reader.save_error is said
        assert len(tries) == 4
    assert opened("b").last_pointer() is None
    assert reader.current() == bundles[1].name  # unchanged, so it is not sent again
    assert reader.save_error is None
    assert opened("b").last_pointer().pointer.current == bundles[1].name
