"""The bytes of a refusal that is written without asking the application."""

from time import perf_counter

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.http.problems import ProblemKind, problem_response
from service.http.security_headers import PLAIN
from service.request_trace import total_since


def refusal_bytes(
    kind: ProblemKind, detail: str, *, request_id: str, headers: dict[str, str], began: float, has_body: bool = True
) -> bytes:
    """A whole answer, head and body.

    Args:
        kind: which problem.
        detail: this occurrence, for a person.
        request_id: told in head and body.
        headers: further ones.
        began: `perf_counter` seconds when the first bytes of the request were received. ``Server-Timing`` says how long
            ago that was when all the rest of the answer is made, just before it is written.
        has_body: False for an answer to HEAD; its headers stay.
    """
    answer = problem_response(kind, detail, request_id=request_id, headers={**headers, "X-Request-ID": request_id})
    head = b"".join(name + b": " + value + b"\r\n" for name, value in (*answer.raw_headers, *PLAIN))
    body = bytes(answer.body) if has_body else b""
    timing = total_since(began, perf_counter()).encode()
    return b"".join((STATUS_LINE[kind.status], head, b"server-timing: ", timing, b"\r\n\r\n", body))
