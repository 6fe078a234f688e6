"""One Kubernetes API server, as plain dictionaries: read, make, remove, watch.

It takes the client library of the process that it runs in: the hub has `kubernetes_asyncio` loaded already, for
KubeSpawner; services take `kubernetes.aio`. Of the library it uses configuration, credentials and connections, never
its models, which know one version of Kubernetes and cost tens of megabytes.
"""

import asyncio
import json
import logging
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

import aiohttp

from ..errors import Conflict, Denied, Invalid, NotFound, RemoteGPUError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
Object = dict[str, Any]

PAGE: Final = 500
"""Objects that a list asks for at once, as kubectl does."""
TRIES: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 10.0
WATCH_SECONDS: Final = 30
"""A watch is begun anew after this long; one that says nothing for longer than that is dead."""
SILENCE_SECONDS: Final = 10
_LATER: Final = frozenset({429, 500, 502, 503, 504})
_CONNECT_SECONDS: Final = 5
_OWN_RULES: Final = re.compile(r"is forbidden: (?!User )|denied the request")
"""A ResourceQuota, Pod Security or a webhook of the cluster, told from a right that is lacking."""
_PATCH: Final = "application/merge-patch+json"


@dataclass(frozen=True)
class Kind:
    """A kind of objects by its path. All of these exist unchanged from Kubernetes 1.20 on, but for the claims."""

    api: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None, part: str | None = None) -> str:
        parts = [self.api]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if part is not None:
            parts.append(part)
        return "/" + "/".join(parts)


PODS: Final = Kind("api/v1", "pods")
SERVICES: Final = Kind("api/v1", "services")
VOLUME_CLAIMS: Final = Kind("api/v1", "persistentvolumeclaims")
CONFIG_MAPS: Final = Kind("api/v1", "configmaps")
SECRETS: Final = Kind("api/v1", "secrets")
NODES: Final = Kind("api/v1", "nodes", namespaced=False)
EVENTS: Final = Kind("api/v1", "events")
INGRESSES: Final = Kind("apis/networking.k8s.io/v1", "ingresses")
CLAIM_TEMPLATES: Final = Kind("apis/resource.k8s.io/v1", "resourceclaimtemplates")
RESOURCE_SLICES: Final = Kind("apis/resource.k8s.io/v1", "resourceslices", namespaced=False)
"""These two: Kubernetes 1.34 and newer."""


class Gone(Unavailable):
    """The server has forgotten the version that a watch or a list was to go on from (410): list anew."""


@dataclass(frozen=True)
class Listing:
    """All objects at one version."""

    items: list[Object]
    version: str


class Kubernetes:
    """Asks one API server. Reads, and removals of one certain object, are tried again; making is the caller's to
    repeat, by `ensure`."""

    def __init__(self, library: ModuleType, *, timeout_seconds: float = 20.0) -> None:
        self._library = library
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=_CONNECT_SECONDS)
        self._client: Any = None

    @classmethod
    async def connect(
        cls, library: ModuleType, *, kubeconfig: str | None = None, context: str | None = None, **given: Any
    ) -> "Kubernetes":
        """Read where the server is and who we are: from inside the cluster, else from the kubeconfig file.

        Raises: Unavailable when there is neither.
        """
        try:
            library.config.load_incluster_config()
        except library.config.ConfigException:
            try:
                await library.config.load_kube_config(config_file=kubeconfig, context=context)
            except (library.config.ConfigException, OSError) as error:
                raise Unavailable(
                    "No cluster is configured: run inside one, or set KUBECONFIG. {reason}", reason=str(error)
                ) from error
        return cls(library, **given)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    # what a caller asks

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """Raises: NotFound."""
        return await self._json("GET", kind.path(namespace, name))

    async def list(self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = "") -> Listing:
        """All objects, of every namespace without one. Never a part: raises Unavailable instead."""
        for _ in range(TRIES):
            try:
                return await self._pages(kind, namespace, labels, fields)
            except Gone as error:
                log.info("The list of %s is read anew: %s", kind.plural, error)
        raise Unavailable("The cluster's list of {what} changes faster than it can be read.", what=kind.plural)

    async def _pages(self, kind: Kind, namespace: str | None, labels: str, fields: str) -> Listing:
        items: list[Object] = []
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields}
        while True:
            page = await self._json("GET", kind.path(namespace), query=query)
            items += page["items"]
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return Listing(items, page["metadata"]["resourceVersion"])

    async def create(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        """Raises: Conflict when the name is taken, Invalid when the server does not like the object."""
        return await self._json("POST", kind.path(namespace), body=body, tries=1)

    async def ensure(
        self, kind: Kind, body: Object, namespace: str | None = None, *, labels: Mapping[str, str]
    ) -> Object:
        """Make an object unless it is there, also when the answer to an earlier try was lost: of a service with a node
        port the server then says that the port is taken (422), before it looks at the name.

        Raises: Conflict when somebody else's object, without these labels, has the name.
        """
        name = body["metadata"]["name"]
        for turn in range(TRIES):
            try:
                return await self.create(kind, body, namespace)
            except (Conflict, Invalid) as error:
                try:
                    there = await self.get(kind, name, namespace)
                except NotFound:
                    if isinstance(error, Invalid):
                        raise error from None
                    await _pause(turn)
                    continue
                worn = there["metadata"].get("labels") or {}
                if all(worn.get(key) == value for key, value in labels.items()):
                    return there
                raise Conflict(
                    "{what} {name} is there already, of something else.", what=kind.plural, name=name
                ) from error
            except Unavailable as error:
                log.info("Making %s %s again: %s", kind.plural, name, error)
                await _pause(turn, error.facts.get("after_seconds"))
        return await self.create(kind, body, namespace)

    async def patch(self, kind: Kind, name: str, body: Object, namespace: str | None = None) -> Object:
        """Merge into an object (RFC 7396). Raises: NotFound."""
        return await self._json("PATCH", kind.path(namespace, name), body=body, content_type=_PATCH)

    async def delete(
        self, kind: Kind, name: str, namespace: str | None = None, *, uid: str | None = None, grace: int | None = None
    ) -> bool:
        """Ask for an object to be removed; False when it is not there. With `uid`, another one of that name is left
        alone. `grace` are seconds; 0 removes a pod from the list even if its node does not answer."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            await self._json("DELETE", kind.path(namespace, name), body=options)
        except NotFound:
            return False
        except Conflict:
            if uid is None:
                raise
            return False
        return True

    async def logs(
        self, name: str, namespace: str, *, container: str | None = None, tail: int | None = None,
        since: datetime | None = None, follow: bool = False, previous: bool = False,
    ) -> AsyncIterator[str]:  # fmt: skip
        """Lines that a container wrote. Raises: NotFound, Invalid while it has not begun, Unavailable, also when they
        break off."""
        query = {
            "container": container or "", "tailLines": "" if tail is None else str(tail),
            "sinceTime": "" if since is None else since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "follow": "true" if follow else "", "previous": "true" if previous else "",
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS) if follow else self._timeout
        response = await self._send("GET", PODS.path(namespace, name, "log"), query=query, limit=timeout)
        try:
            async with response:
                async for line in response.content:
                    yield line.decode("utf-8", "replace").rstrip("\n")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable("The cluster's log of it broke off.") from error

    async def watch(
        self, kind: Kind, version: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> AsyncIterator[tuple[str, Object]]:
        """Changes after a version, as (`ADDED`, `MODIFIED` or `DELETED`, object), with bookmarks, until the server ends
        it after `WATCH_SECONDS`. Raises: Gone, Unavailable, also when the connection says nothing for too long."""
        query = {
            "watch": "true", "resourceVersion": version, "labelSelector": labels, "fieldSelector": fields,
            "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS),
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=WATCH_SECONDS + SILENCE_SECONDS
        )
        response = await self._send("GET", kind.path(namespace), query=query, limit=timeout)
        try:
            async with response:
                async for line in response.content:
                    change = json.loads(line)
                    if change["type"] == "ERROR":
                        raise _error(int(change["object"].get("code", 500)), change["object"], "watch", kind.plural)
                    yield change["type"], change["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable("The cluster's news of {what} broke off.", what=kind.plural) from error

    # the way there

    async def _json(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None,
        content_type: str = "application/json", tries: int = TRIES,
    ) -> Object:  # fmt: skip
        for turn in range(tries):
            try:
                response = await self._send(method, path, query=query, body=body, content_type=content_type)
                async with response:
                    found: Object = await response.json(content_type=None)
                    return found
            except (Gone, Denied):
                raise
            except Unavailable as error:
                if turn == tries - 1:
                    raise
                log.info("%s %s is tried again: %s", method, path, error)
                await _pause(turn, error.facts.get("after_seconds"))
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                if turn == tries - 1:
                    raise Unavailable("The cluster's answer broke off; nothing is known.") from error
                await _pause(turn)
        raise AssertionError

    async def _send(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None,
        content_type: str = "application/json", limit: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        if self._client is None:
            self._client = self._library.client.ApiClient()
        configuration = self._client.configuration
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "remotegpu-hub"}
        try:
            settings = (await configuration.auth_settings()).values()
        except Exception as error:  # its hooks read files and start programs
            raise Unavailable("The cluster cannot be reached: {reason}.", reason=str(error) or repr(error)) from error
        headers.update({one["key"]: one["value"] for one in settings if one.get("value")})
        given = {key: value for key, value in (query or {}).items() if value}
        url = configuration.host + path + ("?" + urlencode(given) if given else "")
        # kubernetes_asyncio reads the body at once unless told otherwise; kubernetes.aio never does
        lazily = {} if self._library.__name__ == "kubernetes.aio" else {"_preload_content": False}
        try:
            answer = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=limit or self._timeout, **lazily
            )
        except TimeoutError as error:
            raise Unavailable("The cluster did not answer in time; nothing is known.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable("The cluster cannot be reached: {reason}.", reason=str(error) or repr(error)) from error
        response: aiohttp.ClientResponse = getattr(answer, "response", answer)
        if response.status < 300:
            return response
        try:
            async with response:
                text = await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable("The cluster's answer broke off; nothing is known.") from error
        try:
            told = json.loads(text)
        except ValueError:
            told = {"message": text[:300]}
        wait = response.headers.get("Retry-After", "")
        raise _error(
            response.status, told if isinstance(told, dict) else {}, method.lower(), path,
            int(wait) if wait.isdecimal() else None,
        )  # fmt: skip


async def _pause(turn: int, at_least: float | None = None) -> None:
    """Wait longer each time, never two callers alike."""
    longest = min(FIRST_PAUSE_SECONDS * 2**turn, LONGEST_PAUSE_SECONDS)
    await asyncio.sleep(random.uniform(0.5, 1) * longest + min(at_least or 0, LONGEST_PAUSE_SECONDS))


def _error(status: int, told: Object, verb: str, what: str, after_seconds: int | None = None) -> RemoteGPUError:
    """Say in our words what the server refused; its own sentence names what is wrong."""
    message = str(told.get("message") or told.get("reason") or status)
    if status == 401:
        return Denied("The cluster does not know this hub: its token or certificate is not accepted.")
    if status in _LATER or (status == 403 and "status unknown for quota" in message):  # it was made a moment ago
        return Unavailable(
            "The cluster answers {status}: {reason}", status=status, reason=message, after_seconds=after_seconds
        )
    if status == 403 and _OWN_RULES.search(message):
        return Conflict("The cluster's own rules refuse it: {reason}", reason=message)
    if status == 403:
        return Denied(
            "The cluster does not let this hub do that ({reason}). Apply the rules in docs/kubernetes.md.",
            reason=message,
        )
    if status == 404:
        return NotFound("What was asked of the cluster")
    if status == 409:
        return Conflict("The cluster refuses it now: {reason}", reason=message)
    if status == 410:
        return Gone("The cluster has forgotten that version.")
    if status in (400, 413, 422):
        return Invalid("The cluster does not accept it: {reason}", reason=message)
    return RemoteGPUError("The cluster answers {status} to {verb}: {reason}", status=status, verb=verb, reason=message)


class Mirror(Generic[T]):
    """What there is of one kind, followed by a watch that goes on where it broke off, and lists anew where it cannot.

    `keep` makes what is remembered of an object, so that a thousand nodes cost little; None forgets it. `changed` is
    told what was remembered before and what is now; nothing at all when everything was listed.
    """

    def __init__(
        self, kubernetes: Kubernetes, kind: Kind, keep: Callable[[Object], T | None], *, namespace: str | None = None,
        labels: str = "", fields: str = "", changed: Callable[[T | None, T | None], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self._kubernetes, self._kind, self._keep, self._changed = kubernetes, kind, keep, changed
        self._where = {"namespace": namespace, "labels": labels, "fields": fields}
        self.objects: dict[str, T] = {}
        self.ready = asyncio.Event()
        """Set when all was listed at least once."""
        self.heard_at: float | None = None
        """The loop's time when the server last said anything."""

    @property
    def stale(self) -> bool:
        """The server was not heard for longer than two watches may take: what is here may be long past."""
        now = asyncio.get_running_loop().time()
        return self.heard_at is None or now - self.heard_at > 2 * (WATCH_SECONDS + SILENCE_SECONDS)

    async def follow(self) -> None:
        """Follow for ever; what fails is tried again."""
        version: str | None = None
        turn = 0
        while True:
            try:
                if version is None:
                    version = await self._list()
                async for change, thing in self._kubernetes.watch(self._kind, version, **self._where):  # type: ignore[arg-type]
                    version = thing["metadata"]["resourceVersion"]
                    self._heard()
                    if change != "BOOKMARK":
                        self._apply(change, thing)
                self._heard()
                turn = 0
            except Gone:
                version = None
            except Exception as error:  # whatever it was: nobody else would begin again
                foreseen = isinstance(error, RemoteGPUError)
                log.warning("%s are not followed for the moment: %s", self._kind.plural, error, exc_info=not foreseen)
                await _pause(turn, error.facts.get("after_seconds") if isinstance(error, RemoteGPUError) else None)
                turn = min(turn + 1, 8)
                if turn > 1 or not foreseen:
                    version = None

    async def _list(self) -> str:
        listing = await self._kubernetes.list(self._kind, **self._where)  # type: ignore[arg-type]
        self.objects = {_key(thing): kept for thing in listing.items if (kept := self._keep(thing)) is not None}
        self._heard()
        self.ready.set()
        self._changed(None, None)
        return listing.version

    def _apply(self, change: str, thing: Object) -> None:
        kept = None if change == "DELETED" else self._keep(thing)
        before = self.objects.pop(_key(thing), None)
        if kept is not None:
            self.objects[_key(thing)] = kept
        if kept != before:
            self._changed(before, kept)

    def _heard(self) -> None:
        self.heard_at = asyncio.get_running_loop().time()


def _key(thing: Object) -> str:
    metadata = thing["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"
