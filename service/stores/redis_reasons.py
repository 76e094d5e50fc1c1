"""Explains errors of Redis in plain words, never in its own, which may name keys or hosts."""

import re
import ssl
from collections.abc import Iterator
from socket import gaierror
from typing import Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import BusyLoadingError, InvalidResponse, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import TimeoutError as RedisTimeout

ELSEWHERE: Final = frozenset({"READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS"})
"""First words of errors after which the host name may lead to another node by now."""

_NOT_SERVING: Final = frozenset({"LOADING", "MASTERDOWN", "NOAUTH"})
"""First words of errors with which Redis refuses every read."""

CONNECTING: Final = "while connecting; with rediss:// its port must speak TLS"

_PLAIN: Final = {
    "CLUSTERDOWN": "the Redis Cluster is down, or no node of it serves this slot",
    "CROSSSLOT": "it is a node of a Redis Cluster; name the cluster with redis+cluster://",
    "MOVED": "it is a node of a Redis Cluster, whose slots move or whose URL must begin with redis+cluster://",
    "ASK": "it is a node of a Redis Cluster, whose slots move or whose URL must begin with redis+cluster://",
    "BUSY": "a script of another client keeps it busy",
    "ERASURESFULL": "too many erasures wait for the exporter of events; start `vlm2rec events export`",
    "LOADING": "it is still reading its data from the disk",
    "MERGESFULL": "too many merges into this user were begun and not ended; call them again",
    "MASTERDOWN": "it is a replica that has lost its master and gives no stale data",
    "MISCONF": "it takes no writes because it could not save to its disk",
    "NOAUTH": "it requires a user or password; put them into the URL",
    "NOREPLICAS": "it takes no writes because too few replicas follow it",
    "OOM": "it is out of memory with nothing to evict; raise maxmemory",
    "READONLY": "it is a replica and takes no writes",
    "TRYAGAIN": "the slot of these keys is being moved to another node",
    "UNCONFIRMED": "it has done this, but too few replicas have confirmed it in time",
    "WRONGPASS": "it refuses user or password; in the URL both must be percent-encoded, as in p%40ss",
    "WRONGTYPE": "a key of this prefix holds a value of another kind, written by another program",
}
_WORD: Final = re.compile(r"[A-Z][A-Z0-9]{1,30}")
# Redis 6.2 puts the error of a command inside that of its script, 7.0 puts the line of the script behind it.
_IN_SCRIPT: Final = re.compile(r".*@user_script: ?(\d+): -?(.*)", re.DOTALL)
_ON_LINE: Final = re.compile(r"(.*) script: \w+, on @user_script:(\d+)\.?", re.DOTALL)
_COMMAND: Final = re.compile(r"'([a-z]{2,30}(?:\|[a-z-]{2,30})?)' command")
_CALLED: Final = re.compile(r"'([A-Z]{2,30})'")
_LONG_WITHOUT_LOGIN: Final = "Protocol error: unauthenticated"
_NOT_PERMITTED: Final = "The user executing the script can't"
_NO_COMMAND: Final = "can't run this command"
_ANOTHER_NAME: Final = 62  # of X509_V_ERR_HOSTNAME_MISMATCH; 64 is that of an address
_ANOTHER_ADDRESS: Final = 64


def first_word(error: ResponseError | ConnectionLost) -> str:
    """The first word of an error that Redis answered, such as OOM; for a script that of the command that failed."""
    return _split(error)[0]


def serves_reads(error: BaseException | None) -> bool:
    """Whether the error of a read shows that Redis serves reads, only not this one."""
    return isinstance(error, ResponseError) and first_word(error) not in _NOT_SERVING


def in_script(error: ResponseError, script: str) -> ResponseError:
    """The error of a script, with the command that its user may not run: Redis up to 7.0 names only its line.

    Args:
        error: the error that Redis answered.
        script: source of the script.
    """
    word, text, line = _split(error)
    called = _CALLED.search(script.split("\n")[line - 1]) if line and word == "NOPERM" else None
    if called is None or _NO_COMMAND not in text:
        return error
    return NoPermissionError(f"the '{called[1].lower()}' command in a script", status_code=word)


def reason_of(error: BaseException) -> str:
    """First word and plain reason of an error that Redis answered, or why there is no connection.

    Args:
        error: raised by redis-py; the errors that it was raised from are examined too.
    """
    for found in _chain(error):
        if isinstance(found, ResponseError) or (isinstance(found, ConnectionLost) and _status(found)):
            return _answered(found)
        known = _of_connecting(found)
        if known:
            return known
    return type(error).__name__


def _answered(error: ResponseError | ConnectionLost) -> str:
    word, text, _ = _split(error)
    if word == "NOPERM":
        command = _COMMAND.search(text)
        if command:
            return f"NOPERM: its user may not run the command {command[1]}"
        return "NOPERM: its user may not use keys of this prefix"
    plain = _PLAIN.get(word)
    return f"{word}: {plain}" if plain else word


def _split(error: ResponseError | ConnectionLost) -> tuple[str, str, int]:
    """First word, whole text and line of the script; 0 if Redis does not name a line."""
    text, line = str(error), 0
    word = _status(error) or text.partition(" ")[0]
    if inside := _IN_SCRIPT.fullmatch(text):
        line, text = int(inside[1]), inside[2]
        word = text.partition(" ")[0]
    elif behind := _ON_LINE.fullmatch(text):
        text, line = behind[1], int(behind[2])
    if _NOT_PERMITTED in text:
        word = "NOPERM"
    elif _LONG_WITHOUT_LOGIN in text:
        word = "NOAUTH"
    return (word if _WORD.fullmatch(word) else "ERR"), text, line


def _status(error: BaseException) -> str:
    return getattr(error, "status_code", None) or ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen = [error]
    while (inner := seen[-1].__cause__ or seen[-1].__context__) is not None and inner not in seen:
        seen.append(inner)
    return iter(seen)


def _of_connecting(error: BaseException) -> str:
    """Why there is no connection; empty if this error does not say."""
    if isinstance(error, ssl.SSLError):
        return _of_tls(error)
    for kind, plain in (
        (MasterNotFoundError, "no Sentinel that answers names a master of this name that is up"),
        (gaierror, "its host name is not known"),
        (ConnectionRefusedError, "nothing listens at its address"),
        (FileNotFoundError, "a file that its URL names does not exist: the socket, or a certificate or key"),
        (PermissionError, "a file that its URL names may not be used: the socket, or a certificate or key"),
        (InvalidResponse, "its replies are not Redis' protocol; a port with TLS needs rediss://"),
        (ConnectionResetError, "it closed the connection; a port with TLS needs rediss://"),
        (TimeoutError, f"no answer {CONNECTING}"),
        (RedisTimeout, f"no answer {CONNECTING}"),
        (BusyLoadingError, f"LOADING: {_PLAIN['LOADING']}"),
    ):
        if isinstance(error, kind):
            return plain
    if isinstance(error, RedisError) and "max number of clients" in str(error):
        return "it has reached its limit of clients"
    if isinstance(error, RedisError) and "closed by server" in str(error):
        return "it closed the connection; a port with TLS needs rediss://"
    return ""


def _of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in {_ANOTHER_NAME, _ANOTHER_ADDRESS}:
            return "its certificate is for another host name; see ssl_check_hostname"
        return f"its certificate is refused: {error.verify_message}; see ssl_ca_certs"
    reason = error.reason or ""
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
        return "it does not speak TLS; use redis://"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "it requires a client certificate; set ssl_certfile and ssl_keyfile"
    return f"TLS failed: {reason or 'no reason given'}"
