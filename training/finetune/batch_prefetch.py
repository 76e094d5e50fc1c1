"""Prepares the next batches in threads while the model works on the current one."""

# Threads, not processes: decoding, scaling and copying pictures releases the interpreter's lock, and all threads
# share one store of preprocessed pictures.

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")


def prefetched(
    inputs: Iterable[_Input], make: Callable[[_Input], _Output], *, workers: int
) -> Generator[_Output, None, None]:
    """``map(make, inputs)``, computed ahead of time by threads.

    Args:
        inputs: may be endless; read in the calling thread.
        make: called in several threads at once if there are several workers.
        workers: number of threads and of results computed ahead; 0 computes each result on demand.

    Yields:
        Results in the order of the inputs. An exception of ``make`` is raised in place of its result. Closing the
        generator ends the threads.
    """
    if workers == 0:
        yield from map(make, inputs)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending: deque[Future[_Output]] = deque()
    try:
        for value in inputs:
            pending.append(pool.submit(make, value))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
