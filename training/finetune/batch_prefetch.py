"""Prefetching: the next batches are put together while the model works on this one.

Threads, not processes: decoding, scaling and copying pictures happens outside the interpreter's lock, and one store of
preprocessed pictures serves all of them.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")


def prefetched(
    inputs: Iterable[_Input], make: Callable[[_Input], _Output], *, workers: int
) -> Generator[_Output, None, None]:
    """``map(make, inputs)``, made ahead of time by threads.

    Args:
        inputs: may be endless; read in the calling thread.
        make: called in several threads at once if there are several workers.
        workers: threads, and how many results are made ahead; 0 makes each when it is asked for.

    Yields:
        Results in the order of the inputs. What ``make`` raises is raised where its result would have come. Close it to
        end the threads early.
    """
    if workers == 0:
        yield from map(make, inputs)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    waiting: deque[Future[_Output]] = deque()
    try:
        for one in inputs:
            waiting.append(pool.submit(make, one))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
