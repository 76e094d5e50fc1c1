"""Declares the settings of the store in which items are searched, and reads its URL."""

import re
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field, SecretStr, field_validator, model_validator

from service.settings.groups import FilePath, SettingsGroup
from service.settings.secret_files import read_secret

RULE: Final = "must be faiss, or milvus+http://host:port or milvus+https://host:port, with /database where it has one"
_URL: Final = re.compile(
    r"milvus\+(https?://(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?)(?:/([A-Za-z_]\w{0,254})?)?"
)


class MilvusUrl(NamedTuple):
    """Where Milvus is: the URL of its host, and the name of a database, empty for the default one."""

    uri: str
    database: str


def parse_milvus_url(url: str) -> MilvusUrl:
    """Read ``milvus+http://host:port/database``.

    Raises:
        ValueError: with the rule, never with the URL, which may hold a password.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(f"{RULE}; the token has a setting of its own")
    return MilvusUrl(found[1], found[2] or "")


class RetrievalSettings(SettingsGroup):
    """Where items are searched."""

    retriever: str = Field(
        "faiss",
        description="Where items are searched: `faiss`, the index in the bundle, or `milvus+http://host:port/database` "
        "or `milvus+https://…`.",
    )
    retriever_token: SecretStr | None = Field(
        None, description="Token of Milvus: `user:password` or an API key; none: it is open."
    )
    retriever_token_file: FilePath | None = Field(
        None, description="File that holds this token, for Docker and Kubernetes secrets; read once at startup."
    )
    retriever_timeout_ms: int = Field(
        250, ge=1, le=60_000, description="Milliseconds that a call of Milvus may take before the answer degrades."
    )
    retriever_cache_mb: int = Field(
        256,
        ge=0,
        le=1_048_576,
        description="Most MB for the vectors of history items and list candidates that each worker keeps of each "
        "bundle; others are fetched from Milvus. 0: they are read from the bundle's file.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_token(cls, given: dict[str, Any]) -> dict[str, Any]:
        file = given.get("retriever_token_file")
        if file is None:
            return given
        if "retriever_token" in given:
            raise ValueError("set retriever_token or retriever_token_file, not both")
        return {**given, "retriever_token": read_secret(Path(file), "retriever_token_file").strip()}

    @field_validator("retriever")
    @classmethod
    def _check_retriever(cls, value: str) -> str:
        if value != "faiss":
            parse_milvus_url(value)
        return value

    @property
    def kind(self) -> Literal["faiss", "milvus"]:
        """Which of the two."""
        return "faiss" if self.retriever == "faiss" else "milvus"

    @property
    def token(self) -> str:
        """The token; empty where there is none."""
        return "" if self.retriever_token is None else self.retriever_token.get_secret_value()

    @property
    def timeout_s(self) -> float:
        """Seconds that a search may take."""
        return self.retriever_timeout_ms / 1000.0
