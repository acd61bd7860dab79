"""Objects in OSS (or whatever speaks its protocol), through oss2, and only where the operator allows.

Credentials come from the environment: OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and, for temporary
ones, OSS_SESSION_TOKEN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_cloud.errors import InputRefused, InputUnreachable, NotImplementedHere, SavingFailed
from sd_cloud.settings import OssSettings

SCHEME = "oss://"
CONNECT_SECONDS = 10

_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"(?:https?://)?oss-([a-z]+-[a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com/?")


@dataclass(frozen=True)
class OssAddress:
    """``oss://bucket/key``. ``key`` has no slash at its ends; it is empty for the whole bucket."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str, *, field: str) -> OssAddress:
        """Raises InputRefused for what is no address, or one whose key climbs or has empty parts."""
        bucket, _, key = text[len(SCHEME) :].partition("/")
        key = key.rstrip("/")
        if not text.startswith(SCHEME) or not _BUCKET.fullmatch(bucket):
            raise InputRefused(f"{text!r} is not oss://bucket/prefix", field=field)
        parts = key.split("/") if key else []
        if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\\\\x00-\x1f]", key):
            raise InputRefused(f"{text!r} has an empty, '.' or '..' part or an odd character", field=field)
        return cls(bucket, key)

    def __truediv__(self, name: str) -> OssAddress:
        return OssAddress(self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


class Oss:
    """Reads, writes and signs objects. All of it blocks: call it in a thread."""

    def __init__(self, settings: OssSettings) -> None:
        self._settings = settings
        self._buckets: dict[str, Any] = {}

    def allowed(self, text: str, *, field: str) -> OssAddress:
        """The address that a request names, if the operator lists its bucket and prefix.

        Raises InputRefused.
        """
        address = OssAddress.parse(text, field=field)
        for entry in self._settings.allow:
            bucket, _, prefix = entry.strip("/").partition("/")
            if address.bucket == bucket and f"{address.key}/".startswith(f"{prefix}/" if prefix else ""):
                return address
        raise InputRefused(
            f"{address} is not below a bucket or prefix that the operator lists with --oss-allow", field=field
        )

    def mounted_at(self, path: Path) -> OssAddress | None:
        """The object that a file on a mounted bucket is (``--oss-mount``); None when it is on no mount."""
        for mount, target in sorted(self._settings.mounts, key=lambda pair: -len(pair[0])):
            if path.is_relative_to(mount):
                base = OssAddress.parse(target, field="--oss-mount")
                relative = path.relative_to(mount).as_posix()
                return base / relative if relative != "." else base
        return None

    def put(self, address: OssAddress, data: bytes, content_type: str) -> None:
        """Upload one object. Raises SavingFailed."""
        try:
            self._bucket(address.bucket).put_object(address.key, data, headers={"Content-Type": content_type})
        except _failures() as error:
            raise SavingFailed(f"{address} could not be uploaded: {_reason(error)}") from error

    def get(self, address: OssAddress, *, limit_bytes: int, field: str) -> bytes:
        """Download one object of at most ``limit_bytes``. Raises InputRefused or InputUnreachable."""
        data = bytearray()
        try:
            with self._bucket(address.bucket).get_object(address.key) as taken:
                for chunk in taken:
                    data += chunk
                    if len(data) > limit_bytes:
                        raise InputRefused(
                            f"{address} is larger than the limit of {limit_bytes} bytes", field=field
                        )
        except _failures() as error:
            raise InputUnreachable(f"{address} could not be read: {_reason(error)}", field=field) from error
        return bytes(data)

    def get_file(self, address: OssAddress, file: Path, *, limit_bytes: int, field: str) -> None:
        """Download one object into a file, piece by piece. Raises as `get` does."""
        received = 0
        try:
            with self._bucket(address.bucket).get_object(address.key) as taken, file.open("wb") as target:
                for chunk in taken:
                    received += len(chunk)
                    if received > limit_bytes:
                        raise InputRefused(
                            f"{address} is larger than the limit of {limit_bytes} bytes", field=field
                        )
                    target.write(chunk)
        except _failures() as error:
            raise InputUnreachable(f"{address} could not be read: {_reason(error)}", field=field) from error

    def delete(self, address: OssAddress) -> None:
        """Delete one object; one that is not there is fine. Raises SavingFailed."""
        try:
            self._bucket(address.bucket).delete_object(address.key)
        except _failures() as error:
            raise SavingFailed(f"{address} could not be deleted: {_reason(error)}") from error

    def sign(self, address: OssAddress, seconds: int) -> str:
        """A link to the object that needs no credentials and expires after ``seconds``.

        Raises SavingFailed when there are no credentials to sign with.
        """
        try:
            bucket = self._bucket(address.bucket)
            return str(bucket.sign_url("GET", address.key, seconds, slash_safe=True))
        except _failures() as error:
            raise SavingFailed(f"{address} could not be signed: {_reason(error)}") from error

    def _bucket(self, name: str) -> Any:
        if name not in self._buckets:
            self._buckets[name] = self._opened(name)
        return self._buckets[name]

    def _opened(self, name: str) -> Any:
        oss2 = _oss2()
        endpoint = self._settings.endpoint
        if not endpoint:
            raise NotImplementedHere("no OSS endpoint is set; start the service with --oss-endpoint")
        provider = oss2.credentials.EnvironmentVariableCredentialsProvider()
        region = region_of(endpoint)
        # New accounts are served signature version 4 only, which needs the region; an endpoint
        # that does not tell it (a custom domain, a compatible store) gets version 1.
        auth = oss2.ProviderAuthV4(provider) if region else oss2.ProviderAuth(provider)
        return oss2.Bucket(auth, endpoint, name, connect_timeout=CONNECT_SECONDS, region=region)


def region_of(endpoint: str) -> str | None:
    """The region in an OSS endpoint of the public cloud (``oss-<region>[-internal].aliyuncs.com``)."""
    found = _REGION.fullmatch(endpoint)
    return found[1] if found else None


def _oss2() -> Any:
    """The package, which only a service that uses OSS needs."""
    try:
        import oss2
        import oss2.credentials
    except ImportError as error:
        raise NotImplementedHere("oss:// addresses need the package oss2, which is not installed") from error
    return oss2


def _failures() -> tuple[type[Exception], ...]:
    """What oss2 raises: its own errors, and those of the connection while a body is read."""
    return (_oss2().exceptions.OssError, OSError)


def _reason(error: Exception) -> str:
    """The store's own words: code and message where it sent them."""
    told = [str(part) for part in (getattr(error, "code", ""), getattr(error, "message", "")) if part]
    return ": ".join(told) or str(getattr(error, "body", "")) or str(error)
