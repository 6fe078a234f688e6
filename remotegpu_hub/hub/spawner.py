"""What every spawner of ours does, wherever environments run: show the form, admit before the start, activate when it
runs, and give back only what is confirmed gone. It knows neither processes nor pods: subclasses say how to prepare a
run (`prepare`), who it is (`mark`), and whether anything of it is left (`clear`)."""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import Spawner, SpawnException
from sqlalchemy.orm import Session, joinedload, selectinload
from traitlets import Unicode

from .. import choices, words
from ..db import begin
from ..domain import allocations, environments, keys, users, volumes, workspaces
from ..domain.audit import Actor, record
from ..domain.environments import Choice
from ..domain.offers import offers
from ..errors import Abandoned, Conflict, NotFound, RemoteGPUError, StartFailed, Unavailable
from ..observed import COUNTED
from ..origin import address_of
from ..orm import Allocation, AllocationSlot, EndReason, GpuSlot, PortService, User, Volume
from ..runtime import Runtime, utcnow
from . import form
from .wiring import overwritten

T = TypeVar("T")

SLACK_SECONDS = 1.0
"""By this much the hub's clock for a start may run before ours."""
LATE_THREAD_SECONDS = 10
"""How long the end of a run waits for a database thread of its start; the tombstone covers whatever comes later."""


@dataclass(frozen=True)
class HeldGpu:
    """One slot of a GPU."""

    uuid: str
    """`RESOURCE#NUMBER` for a device that a device plugin only counts."""
    memory_mib: int
    """Of the whole device."""
    gpu_millis: int
    """Of the whole device, that the slot is."""


@dataclass(frozen=True)
class HeldPort:
    """One port mapping."""

    service: str
    internal: int
    external: int
    at: str = ""
    """Host and path at the Ingress; empty for a port."""


@dataclass(frozen=True)
class HeldVolume:
    """Storage that the run sees."""

    kind: str
    """`home` or `shared`."""
    id: int
    size_bytes: int
    made_at: str = ""
    """ISO 8601."""


@dataclass(frozen=True)
class Held:
    """What admission gave, as plain values for the pod or process that is made from it."""

    allocation_id: int
    attempt: str
    user_id: int
    """Our own number, never used again."""
    user_name: str
    workspace_id: int
    workspace: str
    environment_id: int
    display_name: str
    host: str
    pool: str
    image: str
    image_digest: str | None
    gpu_model: str | None
    gpus: tuple[HeldGpu, ...]
    simulated: bool
    cpu_millis: int
    memory_bytes: int
    ports: tuple[HeldPort, ...]
    volumes: tuple[HeldVolume, ...] = ()
    ssh_keys: str = ""
    """The lines of `authorized_keys`, where it has a port for SSH."""

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """Each device once, however many shares of it are held: CUDA takes a list that repeats one for no device."""
        return tuple(dict.fromkeys(gpu.uuid for gpu in self.gpus))


@dataclass(frozen=True)
class Caller:
    """Whose server this is and who asks, read on the hub's loop: its objects load from its one session, which no other
    thread may touch."""

    hub_user_id: int
    user_name: str
    server_name: str
    actor: Actor


@dataclass
class Run:
    """One start, from before its admission until it is confirmed gone."""

    attempt: str
    allocation_id: int = 0
    mark: str = ""
    held: Held | None = None
    host: str = ""
    active: bool = False
    alive_at: datetime | None = None
    ended_at: datetime | None = None
    """When it ended, where that is known better than by the last look."""
    work: asyncio.Future[Any] | None = None
    given_up: bool = False
    """Its end has begun, perhaps while its start is still on its way."""
    reason: EndReason | None = None
    message: str = ""


class Prefill(Exception):
    """Query arguments only pre-fill the form; a start is a POST, or REST with a token."""

    jupyterhub_message = ""


class _QuietPrefill(logging.Filter):
    """The hub logs a traceback for every exception of `options_from_query`; ours is no news."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], Prefill))


_quiet = _QuietPrefill()
_posted: "weakref.WeakKeyDictionary[Any, tuple[str, dict[str, list[str]], str]]" = weakref.WeakKeyDictionary()
"""Server, fields and language of the form that a user sent last, for rendering it again with the refusal."""


@cache
def runtime_at(path: str) -> Runtime:
    """One engine for all spawners of the hub."""
    return Runtime.read(path)


class RemoteGPUMixin(Spawner):  # type: ignore[misc]
    """Put before a JupyterHub spawner class."""

    runtime_file = Unicode(help="Path of the file that `configure(c)` writes; set by it.").tag(config=True)

    _run: Run | None = None
    _messages: list[str]
    _news: asyncio.Event
    _never_started = False

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._messages, self._news = [], asyncio.Event()
        self._never_started = self.orm_spawner is not None and self.orm_spawner.last_activity is None

    # what subclasses say

    async def prepare(self, held: Held) -> None:
        """Make the coming start one of this run. Everything it sets, it sets at every start: nothing may stick.

        An error of our tree is told as a refusal, and all is given back.
        """
        raise NotImplementedError

    async def mark(self) -> str:
        """The identity of what runs now, never used twice."""
        raise NotImplementedError

    async def clear(self, run: Run) -> bool:
        """End whatever is left of a run. True only when nothing is left for certain."""
        raise NotImplementedError

    async def busy_ports(self) -> frozenset[int]:
        """Outside ports that something else was seen to use."""
        return frozenset()

    def knows(self, image: str) -> bool:
        """Whether this image of the catalogue can be run here now."""
        return True

    same_inside = False
    """Processes listen on the outside port itself."""
    enforced = False
    """CPU and memory are bounded, not only counted."""

    # the start

    @property
    def runtime(self) -> Runtime:
        return runtime_at(self.runtime_file)

    async def start(self) -> Any:
        """Admit, start, activate. Whatever goes wrong, the hub calls `stop` and the post-stop hook afterwards."""
        begun = asyncio.get_running_loop().time()
        try:
            return await self._start_run()
        except (asyncio.CancelledError, TimeoutError) as error:
            lasted = asyncio.get_running_loop().time() - begun
            self._note_interruption(late=isinstance(error, TimeoutError) or lasted > self.start_timeout - SLACK_SECONDS)
            raise

    def _note_interruption(self, *, late: bool) -> None:
        """The hub cancels a start that takes too long, and one whose user wants it no more."""
        run = self._run
        if run is None or run.reason is not None:
            return
        run.reason = EndReason.TIMEOUT if late else EndReason.USER
        if late:
            run.message = words.translate("en", "It did not start in time and was given up.")

    async def _start_run(self) -> Any:
        language = self._language()
        self._messages, self._news = [], asyncio.Event()
        for problem in overwritten(JupyterHub.instance()) if JupyterHub.initialized() else []:
            raise self._refuse(Unavailable("This hub's configuration is broken: {problem}", problem=problem), language)
        if self._run is not None and not await self._conclude(self._run):
            raise self._refuse(_still_stopping(), language)
        self._tell(words.translate(language, "Checking limits and looking for a host."))
        try:
            choice = choices.parse(self.user_options or {})
            run, held = await self._admitted(choice)
        except RemoteGPUError as error:
            await self._note_refusal(error)
            raise self._refuse(error, language) from error
        _posted.pop(self.user, None)
        run.held, run.allocation_id, run.host = held, held.allocation_id, held.host
        self._tell(
            words.translate(language, "Admitted to {workspace}: runs on {host}.", workspace=held.workspace,
                            host=held.host)
        )  # fmt: skip
        for uuid in held.gpu_uuids:
            if COUNTED not in uuid:
                self._tell(words.translate(language, "Holds the GPU {uuid}.", uuid=uuid))
        try:
            await self.prepare(held)
        except RemoteGPUError as error:
            await self._note_refusal(error)
            raise self._refuse(error, language) from error
        if run.given_up:
            raise self._refuse(_given_up(), language)
        try:
            where = await super().start()
        except StartFailed as error:
            run.reason, run.message = EndReason(error.reason), str(error)
            raise self._refuse(error, language) from error
        except RemoteGPUError as error:
            run.message = str(error)
            raise self._refuse(error, language) from error
        run.mark = await self.mark()
        run.alive_at = utcnow()
        try:
            await self._work(run, lambda: self._activate(run.attempt, run.mark))
        except RemoteGPUError as error:
            raise self._refuse(error, language) from error
        run.active = True
        self._tell(words.translate(language, "It runs. Waiting for its first answer."))
        return where

    async def _admitted(self, choice: Choice) -> tuple[Run, Held]:
        """Admit a new run. An older one that the hub lost (it was killed, or the database was away) is ended first:
        the hub starts this server, so nobody else is using it."""
        busy = frozenset[int]() if choice.ports == () else await self.busy_ports()
        caller = self._caller()
        for last in (False, True):
            run = self._run = Run(uuid4().hex)
            attempt = run.attempt
            try:
                return run, await self._work(run, lambda attempt=attempt: self._admit(caller, attempt, choice, busy))  # type: ignore[misc]
            except Unavailable:
                raise  # it may have been committed all the same: the post-stop hook buries this attempt
            except Conflict:
                self._run = None
                lost = None if last else await asyncio.wrap_future(self.runtime.submit(self._lost_run, caller))
                if lost is None or not await self._conclude(lost):
                    raise
            except RemoteGPUError:
                self._run = None
                raise
        raise AssertionError

    def _lost_run(self, caller: Caller) -> Run | None:
        with begin(self.runtime.engine, read_only=True) as session:
            user = users.live(session, hub_user_id=caller.hub_user_id)
            lost = allocations.open_of(session, user_id=user.id, server_name=caller.server_name) if user else None
            if lost is None:
                return None
            return Run(lost.attempt, lost.id, lost.mark or "", reason=lost.end_reason or EndReason.ORPHAN)

    async def _work(self, run: Run, work: Callable[[], T]) -> T:
        """Run database work off the hub's loop; if the start is given up, the thread goes on and is awaited later."""
        run.work = asyncio.wrap_future(self.runtime.submit(work))
        return await asyncio.shield(run.work)

    def _admit(self, caller: Caller, attempt: str, choice: Choice, busy: frozenset[int]) -> Held:
        """Read what the choice means before the writing transaction begins, and what was given after it has ended: on
        SQLite nobody else can write meanwhile, the hub included."""
        now, runtime = utcnow(), self.runtime
        with self._reading_as(caller, now) as (session, user):
            kept = environments.find(session, user_id=user.id, server_name=caller.server_name)
            wish = environments.resolve(
                session, user=user, server_name=caller.server_name, choice=choice, rules=runtime.rules, kept=kept
            )
        if not self.knows(wish.image_reference):
            raise NotFound("The image")
        with begin(runtime.engine) as session:
            allocation_id = allocations.admit(
                session, user=user, server_name=caller.server_name, wish=wish, attempt=attempt, rules=runtime.rules,
                actor=caller.actor, now=now, busy_ports=busy, same_inside=self.same_inside,
            ).id  # fmt: skip
        with begin(runtime.engine, read_only=True) as session:
            run = session.get_one(Allocation, allocation_id, options=_HELD)
            there = volumes.of_run(session, user_id=run.user_id, workspace_id=run.workspace_id)
            ssh = any(port.service == PortService.SSH for port in run.ports)
            lines = keys.authorized(session, user_ids=[run.user_id])[run.user_id] if ssh else ""
            return _held(run, [there[kind] for kind in runtime.rules.volumes], lines)

    @contextlib.contextmanager
    def _reading_as(self, caller: Caller, now: datetime) -> Iterator[tuple[Session, User]]:
        """A reading transaction with our row of the user, which is made or brought up to date before where need be."""
        runtime, settings = self.runtime, self.runtime.settings
        with begin(runtime.engine, read_only=True) as session:
            hub_user = users.hub_user(session, hub_user_id=caller.hub_user_id)
            known = users.live(session, hub_user_id=caller.hub_user_id)
            if known is not None and (known.hub_created, known.name) == (hub_user.created, hub_user.name):
                yield session, known
                return
        with begin(runtime.engine) as session:
            user = users.ensure(session, hub_user=hub_user, now=now)
            workspaces.ensure_personal(
                session, user=user, now=now, quota=settings.personal_quota, budget=settings.personal_budget
            )
        with begin(runtime.engine, read_only=True) as session:
            yield session, session.get_one(User, user.id)

    def _activate(self, attempt: str, mark: str) -> None:
        with begin(self.runtime.engine) as session:
            allocations.activate(session, attempt=attempt, mark=mark, now=utcnow())

    def _caller(self) -> Caller:
        return Caller(self.user.id, self.user.name, self.name, self._actor())

    def _actor(self) -> Actor:
        """Who asked for this start: an admin may act for the user."""
        handler = getattr(self, "handler", None)
        current = getattr(handler, "current_user", None)
        name = getattr(current, "name", None) or self.user.name
        if isinstance(current, orm.Service):
            name = f"service:{name}"
        return Actor(name, acted_as=self.user.name if name != self.user.name else None, address=self._address(handler))

    def _address(self, handler: Any) -> str | None:
        """Whence a start was asked for. The hub's own `remote_ip` is what a client writes into `X-Real-Ip`."""
        request = getattr(handler, "request", None)
        if request is None:
            return None
        peer = getattr(getattr(request.connection, "context", None), "address", None)
        forwarded = request.headers.get("X-Forwarded-For", "")
        return address_of(
            peer[0] if isinstance(peer, tuple) else "", forwarded, proxies=self.runtime.settings.proxies,
            behind_proxy=True,
        ) or None  # fmt: skip

    async def _note_refusal(self, error: RemoteGPUError) -> None:
        """A refused choice is audited and must not come back at the next start without options."""
        self.user_options = dict[str, Any]()
        if self.orm_spawner is not None:
            self.orm_spawner.user_options = {}
        caller, new = self._caller(), self._never_started

        def write() -> None:
            with begin(self.runtime.engine) as session:
                user = users.live(session, hub_user_id=caller.hub_user_id)
                record(session, actor=caller.actor, action="allocation.refused", entity="user",
                       entity_id=user.id if user else None, now=utcnow(), server_name=caller.server_name, new=new,
                       code=error.code, reasons=words.explain(error, "en"))  # fmt: skip

        with contextlib.suppress(Unavailable):
            await asyncio.wrap_future(self.runtime.submit(write))

    def _refuse(self, error: RemoteGPUError, language: str) -> SpawnException:
        lines = words.explain(error, language)
        self._tell(lines[0])
        text, html = words.explain_text(error, language), words.explain_html(error, language)
        refusal = SpawnException(text, reason=error.code, message_html=html, status_code=error.status)
        # the hub's spawn page and its progress events read these, and not what the constructor takes
        refusal.jupyterhub_message, refusal.jupyterhub_html_message = text, html
        return refusal

    # the end

    async def stop(self, now: bool = False) -> None:
        self._note_stop()
        await super().stop(now)

    def _note_stop(self) -> None:
        run = self._run
        if run is None or run.reason is not None:
            return
        if run.active and self._waiting_for_response:  # the hub itself stops what does not answer
            run.reason = EndReason.TIMEOUT
            run.message = words.translate("en", "It began, but did not answer in time and was given up.")
        else:
            run.reason = EndReason.USER if run.active else EndReason.FAILED

    def run_post_stop_hook(self) -> Any:
        """The hub also calls this while the process lives (a stop or a poll that raised): nothing is given back here
        that is not confirmed gone."""
        hook = super().run_post_stop_hook()

        async def both() -> None:
            if asyncio.iscoroutine(hook) or asyncio.isfuture(hook):
                await hook
            if self._run is not None:
                await self._conclude(self._run)

        return both()

    async def _conclude(self, run: Run) -> bool:
        """Mark the run as ending; give everything back when nothing of it is left. Never raises: what fails here is
        repaired by the reconciler."""
        run.given_up = True
        actor = Actor(self.user.name)
        try:
            if run.work is not None and not run.work.done():
                await asyncio.wait([run.work], timeout=LATE_THREAD_SECONDS)
            reason = run.reason or (EndReason.EXITED if run.active else EndReason.FAILED)
            await asyncio.wrap_future(self.runtime.submit(self._mark_ending, actor, run, reason))
            if run.allocation_id and not await self.clear(run):
                self.log.warning("%s: something of run %s is left; it keeps its GPUs", self._log_name, run.attempt)
                return False
            await asyncio.wrap_future(self.runtime.submit(self._release, actor, run, reason))
        except Exception:
            self.log.exception("%s: the end of run %s was not written; it will be", self._log_name, run.attempt)
            return False
        if self._run is run:
            self._run = None
        return True

    def _mark_ending(self, actor: Actor, run: Run, reason: EndReason) -> None:
        with begin(self.runtime.engine) as session:
            allocations.mark_ending(
                session, attempt=run.attempt, reason=reason, actor=actor, now=utcnow(), message=run.message
            )

    def _release(self, actor: Actor, run: Run, reason: EndReason) -> None:
        with begin(self.runtime.engine) as session:
            allocations.release(
                session, attempt=run.attempt, reason=reason, actor=actor, now=utcnow(),
                ended_at=run.ended_at or run.alive_at, message=run.message,
            )  # fmt: skip

    async def poll(self) -> int | None:
        status: int | None = await super().poll()
        if status is None and self._run is not None:
            self._run.alive_at = utcnow()
        return status

    # what the hub keeps over its own restart

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self._run is not None:
            state["remotegpu"] = {
                "attempt": self._run.attempt,
                "allocation_id": self._run.allocation_id,
                "mark": self._run.mark,
                "host": self._run.host,
            }
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        kept = state.get("remotegpu")
        if kept:
            self._run = Run(
                kept["attempt"], kept["allocation_id"], kept["mark"], host=kept.get("host", ""), active=True
            )

    async def rename(self, old_name: str, new_name: str) -> None:
        await super().rename(old_name, new_name)
        caller = self._caller()

        def write() -> None:
            with begin(self.runtime.engine) as session:
                user = users.live(session, hub_user_id=caller.hub_user_id)
                if user is not None:
                    environments.rename(
                        session, user_id=user.id, before=old_name, after=new_name, actor=caller.actor, now=utcnow()
                    )

        await asyncio.wrap_future(self.runtime.submit(write))

    async def delete_forever(self) -> None:
        caller = self._caller()

        def write() -> None:
            with begin(self.runtime.engine) as session:
                user = users.live(session, hub_user_id=caller.hub_user_id)
                if user is not None:
                    environments.delete(
                        session, user_id=user.id, server_name=caller.server_name, actor=caller.actor, now=utcnow()
                    )

        await asyncio.wrap_future(self.runtime.submit(write))

    # the form

    @property
    def reader_language(self) -> str:
        """The language of whoever started this; the pending page speaks it."""
        return self._language()

    def _language(self) -> str:
        request = getattr(getattr(self, "handler", None), "request", None)
        if request is None:
            return "en"
        cookie = request.cookies.get("remotegpu_lang")
        return words.language(request.headers.get("Accept-Language"), cookie.value if cookie else None)

    async def get_options_form(self) -> str:
        """Render the spawn page's form with the numbers of this moment."""
        _silence(self.log)
        handler = getattr(self, "handler", None)
        if handler is not None and not handler._finished:
            server_name, language = self.name, self._language()
            choice = choices.prefill_header(handler.request.headers.get("X-RemoteGPU-Choice")) or choices.prefill(
                _query(handler)
            )
        else:  # the hub renders the form of the default server again after any refused POST
            server_name, posted, language = _posted.pop(self.user, (self.name, {}, self._language()))
            choice = choices.prefill(posted)
        try:
            page: str = await asyncio.wrap_future(
                self.runtime.submit(self._page, self._caller(), server_name, choice, language)
            )
        except RemoteGPUError as error:
            return words.explain_html(error, language)
        return page

    def _page(self, caller: Caller, server_name: str, choice: Choice, language: str) -> str:
        now, runtime = utcnow(), self.runtime
        with self._reading_as(caller, now) as (session, user):
            page = offers(
                session, user=user, server_name=server_name, choice=choice, rules=runtime.rules, now=now,
                insecure_demo=runtime.settings.insecure_demo, enforced=self.enforced,
            )  # fmt: skip
        return form.render(page, language)

    def run_options_from_form(self, form_data: dict[str, list[str]]) -> dict[str, Any]:
        """Turn the posted form into `user_options`, remembering it in case it is refused."""
        _posted[self.user] = (self.name, form_data, self._language())
        try:
            return choices.parse_form(form_data)
        except RemoteGPUError as error:
            raise self._refuse_early(error) from error

    def _refuse_early(self, error: RemoteGPUError) -> SpawnException:
        self._messages, self._news = [], asyncio.Event()
        return self._refuse(error, self._language())

    def options_from_query(self, query_data: dict[str, list[str]]) -> dict[str, Any]:
        """Any site can send a browser to `/hub/spawn?…`: that must never start anything."""
        _silence(self.log)
        raise Prefill

    async def apply_user_options(self, *_ignored: Any) -> None:
        """Nothing: the choice is parsed by `start` and never becomes a trait of the spawner."""

    # progress

    def _tell(self, message: str) -> None:
        self._messages.append(message)
        self._news.set()

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what happens during a start, in the words of whoever started it."""
        shown = 0
        while True:
            messages = getattr(self, "_messages", [])
            while shown < len(messages):
                shown += 1
                yield {"progress": min(10 + 20 * shown, 90), "message": messages[shown - 1]}
            future = self._spawn_future
            if future is None or future.done():
                return
            news = getattr(self, "_news", None)
            if news is None:
                await asyncio.sleep(0.2)
                continue
            news.clear()
            waiting = asyncio.ensure_future(news.wait())
            await asyncio.wait([waiting, future], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()


_HELD = (
    joinedload(Allocation.user),
    joinedload(Allocation.workspace),
    joinedload(Allocation.environment),
    joinedload(Allocation.host),
    selectinload(Allocation.ports),
    selectinload(Allocation.slots).joinedload(AllocationSlot.slot).joinedload(GpuSlot.gpu),
)


def _held(allocation: Allocation, storage: Sequence[Volume], ssh_keys: str) -> Held:
    return Held(
        allocation_id=allocation.id,
        attempt=allocation.attempt,
        user_id=allocation.user_id,
        user_name=allocation.user.name,
        workspace_id=allocation.workspace_id,
        workspace=allocation.workspace.name,
        environment_id=allocation.environment_id,
        display_name=allocation.environment.display_name,
        host=allocation.host.name,
        pool=allocation.host.pool,
        image=allocation.image_reference,
        image_digest=allocation.image_digest,
        gpu_model=allocation.gpu_model,
        gpus=tuple(HeldGpu(one.gpu.uuid, one.gpu.memory_mib, one.slot.gpu_millis) for one in allocation.slots),
        simulated=bool(allocation.slots) and allocation.host.simulated,
        cpu_millis=allocation.cpu_millis,
        memory_bytes=allocation.memory_bytes,
        ports=tuple(
            HeldPort(one.service.value, one.internal_port, one.external_port, at=one.address if one.url else "")
            for one in allocation.ports
        ),
        volumes=tuple(
            HeldVolume(one.kind.value, one.id, one.size_bytes, one.created_at.isoformat()) for one in storage
        ),
        ssh_keys=ssh_keys,
    )


def _still_stopping() -> RemoteGPUError:
    return Unavailable("The last run is still stopping and keeps its GPUs until it is gone. Try again in a minute.")


def _given_up() -> RemoteGPUError:
    return Abandoned("This start was given up before it began. Start again.")


def _query(handler: Any) -> dict[str, list[str]]:
    return {
        key.removeprefix("opt-"): [value.decode("utf-8", "replace") for value in values]
        for key, values in handler.request.query_arguments.items()
        if key not in ("next", "display_name", "_xsrf")
    }


def _silence(log: Any) -> None:
    logger = getattr(log, "logger", log)
    if _quiet not in logger.filters:
        logger.addFilter(_quiet)
