"""Who is calling: a `Caller` from a request's headers and its peer."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol, TypeVar

from starlette.requests import HTTPConnection

from sd_cloud import errors
from sd_cloud.access.identity import OPERATOR, Caller
from sd_cloud.access.local import is_local, is_own_origin
from sd_cloud.access.routes import needs_admin
from sd_cloud.access.token import made_token
from sd_cloud.access.users import Users
from sd_cloud.job import Job
from sd_cloud.settings import Settings


class _Task(Protocol):
    @property
    def job(self) -> Job: ...


_T = TypeVar("_T", bound=_Task, covariant=True)


class _Tasks(Protocol[_T]):
    async def task(self, task_id: str) -> _T: ...


class Access:
    """The rules of this service, from its settings.

    ``--no-auth``: everybody is the operator. ``--token`` / ``--api-auth``: everybody must send
    one. Neither: local callers (see `is_local`) are the operator, all others need the token that
    ``--listen`` made.
    """

    def __init__(self, settings: Settings) -> None:
        #: The users of the store, once there is one.
        self.users: Users | None = None
        self._no_auth = settings.no_auth
        self._users = settings.api_auth
        made, _ = made_token(settings)
        self._tokens = (*settings.tokens, *((made,) if made else ()))
        self._local_is_operator = not (settings.tokens or settings.api_auth)
        public = (settings.public_url,) if settings.public_url else ()
        self._origins = (*settings.cors_allow_origins, *public)

    async def caller(self, request: HTTPConnection) -> Caller:
        """Who sent this request. Raises Unauthorized."""
        known = request.scope.get("sd_cloud.caller")  # by the gate, or by a replayed task
        if isinstance(known, Caller):
            return known
        peer = request.client.host if request.client else None
        if self.users is None:
            return self.identify(request.headers, peer)
        if self._no_auth:
            return Caller(OPERATOR, admin=True)
        # Once somebody is known by name, nobody is let in for being here.
        if not await self.users.any():
            return self.identify(request.headers, peer)
        return await self._by_name(request.headers)

    async def _by_name(self, headers: Mapping[str, str]) -> Caller:
        assert self.users is not None
        sent = sent_credential(headers)
        scheme, _, rest = sent.partition(" ")
        if scheme.lower() == "basic":
            user, password = decoded_basic(rest.strip())
            if is_own_origin(headers, self._origins):
                found = await self.users.by_password(user, password)
                found = found or await self.users.by_token(password)
                if found is not None:
                    return found
        elif sent:
            found = await self.users.by_token(rest.strip() if scheme.lower() == "bearer" else sent)
            if found is not None:
                return found
        if not sent:
            raise errors.Unauthorized("Send the header 'Authorization: <token>'; POST /login gives one")
        return self._by_credential(sent, headers)

    async def permitted(self, request: HTTPConnection) -> Caller:
        """Who sent this request, if they may use this route. Raises Unauthorized, NotAllowed."""
        caller = await self.caller(request)
        method = request.scope.get("method", "GET")
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if needs_admin(method, path) and not caller.admin:
            raise errors.NotAllowed(f"{method} {path} needs the admin role")
        return caller

    async def owned_task(self, request: HTTPConnection, tasks: _Tasks[_T], task_id: str) -> _T:
        """A task of this caller's own. Raises TaskNotFound also where it is somebody else's."""
        caller = await self.caller(request)
        task = await tasks.task(task_id)
        if not caller.may_see(task.job.owner):
            raise errors.TaskNotFound(f"no task {task_id!r}")
        return task

    def identify(self, headers: Mapping[str, str], peer: str | None) -> Caller:
        """``headers`` by lower-case name; ``peer`` is the address at the other end."""
        if self._no_auth:
            return Caller(OPERATOR, admin=True)
        # Before any credential: clients that insist on sending a key may send any from here.
        if self._local_is_operator and is_local(headers, peer, self._origins):
            return Caller(OPERATOR, admin=True)
        authorization = sent_credential(headers)
        if authorization:
            return self._by_credential(authorization, headers)
        raise errors.Unauthorized(self._what_to_send())

    def _by_credential(self, authorization: str, headers: Mapping[str, str]) -> Caller:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() == "basic":
            return self._by_basic(rest.strip(), headers)
        token = rest.strip() if scheme.lower() == "bearer" else authorization
        if self._is_token(token):
            return Caller(OPERATOR, admin=True)
        raise errors.Unauthorized(f"this token is not known. {self._what_to_send()}")

    def _by_basic(self, encoded: str, headers: Mapping[str, str]) -> Caller:
        # A browser adds these credentials to a foreign page's requests, too.
        if not is_own_origin(headers, self._origins):
            raise errors.Unauthorized(
                "Basic credentials are not taken from another origin; list it in --cors-allow-origins"
            )
        user, password = decoded_basic(encoded)
        known = [_same(user, name) & _same(password, secret) for name, secret in self._users]
        if any(known):
            return Caller(user, admin=True)
        # A browser's log-in window can only send Basic: any name, and the token as the password.
        if self._is_token(password):
            return Caller(OPERATOR, admin=True)
        raise errors.Unauthorized("incorrect user name or password")

    def _is_token(self, text: str) -> bool:
        same = [_same(text, token) for token in self._tokens]  # all of them, whichever matches
        return any(same)

    def _what_to_send(self) -> str:
        if self._tokens:
            return "Send the header 'Authorization: <token>'"
        if self._users:
            return "Send the header 'Authorization: Basic <base64 of user:password>'"
        return "Without --token or --api-auth only direct callers on this machine are served"


def sent_credential(headers: Mapping[str, str]) -> str:
    """What a caller sent to be known by: ``Authorization``, or ``Token`` of the serverless API."""
    return (headers.get("authorization") or headers.get("token") or "").strip()


def decoded_basic(encoded: str) -> tuple[str, str]:
    """User and password. Raises Unauthorized."""
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise errors.Unauthorized("Authorization: Basic does not hold base64 of user:password") from None
    return user, password


def _same(one: str, other: str) -> bool:
    """Equal, in a time that tells nothing: digests have one length whatever the texts' is."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (one, other)]
    return hmac.compare_digest(*digests)
