"""Sends requests to a running service over HTTP with the standard library."""

import http.client
import json
from time import sleep
from typing import Any
from urllib.parse import quote, urlsplit

from cli.errors import LiveServiceError

_ATTEMPTS = 5
_LONGEST_WAIT_S = 5.0
_LATER = (429, 503)


class LiveService:
    """One keep-alive connection; repeats a request that is answered 429 or 503.

    Args:
        url: ``http://host:port`` or ``https://…``, with a path if the service stands behind one.
        key: API key; None sends none.
        timeout_s: seconds that one answer may take.
        key_variable: variable that has the key, for messages.

    Raises:
        LiveServiceError: the URL is of another form.
    """

    def __init__(self, url: str, key: str | None, *, timeout_s: float, key_variable: str = "VLM2REC_API_KEYS") -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise LiveServiceError(f"{url} is no URL ({error}); give one like http://127.0.0.1:8000") from error
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or not host:
            raise LiveServiceError(f"{url} must begin with http:// or https:// and name a host")
        self._url, self._base, self._key_variable = url, parts.path.rstrip("/"), key_variable
        self._connection = kinds[parts.scheme](host, port, timeout=timeout_s)
        self._headers = {"Content-Type": "application/json"} | ({} if key is None else {"X-API-Key": key})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def bundle_id(self) -> str:
        """Id of the bundle that answers.

        Raises:
            LiveServiceError: the service does not answer as it should.
        """
        status, body = self._ask("GET", "/bundle")
        if status != 200 or not isinstance(body.get("bundle"), str):
            raise self._unlike("GET /bundle", status, body)
        return str(body["bundle"])

    def available(self, item_id: str) -> bool:
        """Whether an item may be answered; raises as :meth:`bundle_id`."""
        status, body = self._ask("GET", f"/items/{quote(item_id, safe='')}")
        if status != 200 or not isinstance(body.get("available"), bool):
            raise self._unlike("GET /items/…", status, body)
        return bool(body["available"])

    def recommend(self, items: list[str], k: int, *, keeps_places: bool = False) -> dict[str, Any]:
        """Recommendations by score alone, without the items of the history; raises as :meth:`bundle_id`.

        Args:
            items: history of item ids, oldest first.
            k: items wanted.
            keeps_places: whether the bundle keeps places for new items; the request then asks for none.
        """
        sent: dict[str, Any] = {"items": items, "k": k, "exclude_seen": True}
        if keeps_places:
            sent["fresh_share"] = 0.0
        status, body = self._ask("POST", "/recommend", sent)
        if status != 200 or not isinstance(body.get("items"), list):
            raise self._unlike("POST /recommend", status, body)
        return body

    def experiment_groups(self, name: str) -> dict[str, Any]:
        """What was counted for an experiment, by arm and group; raises as :meth:`bundle_id`."""
        status, body = self._ask("GET", f"/experiments/{quote(name, safe='')}/groups")
        if status != 200 or not isinstance(body.get("groups"), list):
            raise self._unlike("GET /experiments/…/groups", status, body)
        return body

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        sent = None if body is None else json.dumps(body)
        for attempt in range(_ATTEMPTS):
            status, wait_s, answer = self._once(method, path, sent)
            if status not in _LATER or attempt + 1 == _ATTEMPTS:
                break
            sleep(min(wait_s, _LONGEST_WAIT_S))
        return status, answer

    def _once(self, method: str, path: str, sent: str | None) -> tuple[int, float, dict[str, Any]]:
        kept = self._connection.sock is not None
        try:
            self._connection.request(method, self._base + path, sent, self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if kept:  # the service may close an idle connection at any time
                return self._once(method, path, sent)
            raise LiveServiceError(f"{self._url} does not answer ({error}); is the service running there?") from error
        try:
            wait_s, answer = float(response.headers.get("Retry-After", "1")), json.loads(content)
        except (ValueError, RecursionError):
            wait_s, answer = 1.0, None
        if not isinstance(answer, dict):
            raise LiveServiceError(
                f"{self._url}{path} answers {response.status} with something else than a JSON object; "
                "is it a vlm2rec service?"
            )
        return response.status, wait_s, answer

    def _unlike(self, call: str, status: int, body: dict[str, Any]) -> LiveServiceError:
        hint = f"; give its API key with --api-key or {self._key_variable}" if status in (401, 403) else ""
        return LiveServiceError(f"{self._url}: {call} answers {status}: {str(body.get('detail', body))[:300]}{hint}")
