"""An engine in a child process: start, watch, restart, speak.

The API process never imports torch. It talks to the child over a pipe with pickled tuples:

    to the child      ("run", job)  ("ask", job id, verdict)  ("unload",)  ("memory",)
    from the child    ("ready",)  ("memory", bytes of the GPU)  ("progress", job id, Progress)
                      ("done", job id, Outcome)  ("failed", job id, ServiceError)

A child that dies takes its jobs with it as `EngineDied`, and another one is started.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from sd_cloud.engines.base import Catalogue, Control, EngineDied, Report, Verdict, Worker
from sd_cloud.errors import Cancelled, EngineFailed, ServiceError
from sd_cloud.job import Job, Outcome
from sd_cloud.settings import Settings

log = logging.getLogger(__name__)

#: How far the engine's process steps back behind the API's on a busy machine.
ENGINE_NICENESS = 5

#: Waits before the next start after a child that died before it was ready.
RESTART_SECONDS = (0.2, 1.0, 5.0, 15.0, 30.0)
#: How long a job may ignore a cancel before its process is killed.
KILL_SECONDS = 60.0
#: How long the engine may take to tell how full its device is; it may be in the middle of a kernel.
MEMORY_SECONDS = 30.0


class ChildEngine:
    """The `Engine` whose work is done by a `Worker` in a process of its own.

    ``factory`` is ``module:function``; the function takes the settings and returns the worker.
    It is imported only in the child. ``scan`` makes the catalogue, in this process, in a thread.
    """

    slots = 1

    def __init__(self, factory: str, settings: Settings, *, scan: Callable[[Settings], Catalogue]) -> None:
        self._factory = factory
        self._settings = settings
        self._scan = scan
        self._catalogue: Catalogue | None = None
        self._jobs: dict[str, tuple[asyncio.Future[Outcome], Report]] = {}
        self._sent: set[str] = set()
        self._memory_asked: list[asyncio.Future[Mapping[str, Any]]] = []
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._sending = threading.Lock()
        self._ready = asyncio.Event()
        self._failures = 0
        self._last_end: str | None = None
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the child; returns at once. Call on the event loop."""
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_child, args=(self._factory, self._settings, theirs), name="sd-cloud engine", daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        threading.Thread(target=self._listen, args=(process, ours), daemon=True).start()

    async def stop(self) -> None:
        """End the child. Jobs still in it fail."""
        self._closing = True
        await self._end()

    async def restart(self) -> None:
        """End the child: as after any other end, its jobs fail with EngineDied and another is started."""
        self._ready.clear()  # nothing more is given to this one
        await self._end()

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        await asyncio.to_thread(process.join, 5.0)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join, 5.0)

    @property
    def ready(self) -> bool:
        """True once the child has loaded its libraries and takes jobs."""
        return self._ready.is_set()

    @property
    def trouble(self) -> str | None:
        """Why the engine does not come up: how it ended, twice or more without having been ready."""
        return self._last_end if self._failures > 1 else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    # -- Engine -------------------------------------------------------------------------------

    async def run(self, job: Job, report: Report) -> Outcome:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._jobs[job.id] = (done, report)
        try:
            await self._wait_until_ready(done)
            if not done.done():
                await asyncio.to_thread(self._send, ("run", job))
                self._sent.add(job.id)
                if done.done():  # cancelled while it was on its way: the child has it all the same
                    with suppress(EngineDied):
                        await asyncio.to_thread(self._send, ("ask", job.id, "cancel"))
            return await done
        finally:
            self._jobs.pop(job.id, None)
            self._sent.discard(job.id)

    async def _wait_until_ready(self, done: asyncio.Future[Outcome]) -> None:
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            limit = self._settings.engine_start_seconds
            either: set[asyncio.Future[Any]] = {ready, done}
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() and not done.done():
                raise EngineFailed(f"the engine did not start within {limit:g} s; see the log")
        finally:
            ready.cancel()

    async def cancel(self, job_id: str) -> bool:
        asked = await self._ask(job_id, "cancel")
        if asked:
            asyncio.get_running_loop().call_later(KILL_SECONDS, self._kill_if_stuck, job_id)
        return asked

    async def interrupt(self, job_id: str) -> bool:
        return await self._ask(job_id, "interrupt")

    async def skip(self, job_id: str) -> bool:
        return await self._ask(job_id, "skip")

    def catalogue(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = self._scan(self._settings)
        return self._catalogue

    async def refresh(self) -> Catalogue:
        self._catalogue = await asyncio.to_thread(self._scan, self._settings)
        return self._catalogue

    async def unload(self) -> None:
        if not self.ready:
            return  # a child that has only begun has nothing loaded
        try:
            await asyncio.to_thread(self._send, ("unload",))
        except EngineDied:
            pass  # and one that is gone has nothing left

    async def memory(self) -> Mapping[str, Any]:
        if not self.ready:
            return {"error": "the engine has not started yet"}
        told: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._memory_asked.append(told)
        try:
            await asyncio.to_thread(self._send, ("memory",))
            return await asyncio.wait_for(told, MEMORY_SECONDS)
        except asyncio.TimeoutError:
            return {"error": f"the engine did not answer within {MEMORY_SECONDS:g} s"}
        except EngineDied as error:
            return {"error": str(error)}
        finally:
            if told in self._memory_asked:
                self._memory_asked.remove(told)

    # -- the pipe -----------------------------------------------------------------------------

    async def _ask(self, job_id: str, verdict: Verdict) -> bool:
        if job_id not in self._jobs:
            return False
        if job_id not in self._sent:
            done, _ = self._jobs[job_id]
            if verdict == "cancel" and not done.done():
                done.set_exception(Cancelled("the task was cancelled before the engine had it"))
            return verdict == "cancel"
        await asyncio.to_thread(self._send, ("ask", job_id, verdict))
        return True

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            try:
                if self._pipe is None:
                    raise OSError("not started")
                self._pipe.send(message)
            except OSError as error:
                raise EngineDied(f"the engine's process is gone ({error})") from error

    def _listen(self, process: multiprocessing.process.BaseProcess, pipe: Connection) -> None:
        """In a thread: pass on what the child says until it says no more."""
        assert self._loop is not None
        try:
            while True:
                self._loop.call_soon_threadsafe(self._heard, pipe.recv())
        except (EOFError, OSError):
            pass
        except RuntimeError:  # that loop is closed: nobody is there to hear it
            return
        process.join()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._died, process)

    def _heard(self, message: tuple[Any, ...]) -> None:
        what = message[0]
        if what == "ready":
            self._failures = 0
            self._ready.set()
            return
        if what == "memory":
            self._tell_memory(message[1])
            return
        job_id, content = message[1], message[2]
        if job_id not in self._jobs:
            return
        done, report = self._jobs[job_id]
        self._sent.add(job_id)  # its answer can be here before the sending thread is back
        if what == "progress":
            report(content)
        elif not done.done():
            if what == "done":
                done.set_result(content)
            else:
                done.set_exception(content)

    def _tell_memory(self, told: Mapping[str, Any]) -> None:
        """To everybody who waits: what was asked twice is answered twice with the same."""
        for one in self._memory_asked:
            if not one.done():
                one.set_result(told)

    def _died(self, process: multiprocessing.process.BaseProcess) -> None:
        self._ready.clear()
        reason = _how_it_ended(process.exitcode)
        for done, _ in list(self._jobs.values()):
            if not done.done():
                done.set_exception(EngineDied(reason))
        self._tell_memory({"error": reason})
        if self._closing:
            return
        wait = RESTART_SECONDS[min(self._failures, len(RESTART_SECONDS) - 1)]
        self._failures += 1
        self._last_end = reason
        log.error("%s; starting it again in %.1f s", reason, wait)
        assert self._loop is not None
        self._loop.call_later(wait, self._restart)

    def _restart(self) -> None:
        if not self._closing:
            self.start()

    def _kill_if_stuck(self, job_id: str) -> None:
        if job_id in self._jobs and self._process is not None:
            log.error(
                "job %s did not stop within %g s of its cancel; ending the engine", job_id, KILL_SECONDS
            )
            self._process.kill()


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"the engine's process was ended by {name}{hint}"
    return f"the engine's process ended with exit code {exitcode}"


# -- in the child ---------------------------------------------------------------------------------


def _child(factory: str, settings: Settings, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # The API answers on the cores that this computes on: its 99th percentile falls by half (measured).
    os.nice(ENGINE_NICENESS)
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.basicConfig(level=settings.loglevel, format="%(asctime)s engine %(levelname)s %(message)s")
    module, function = factory.split(":")
    worker: Worker = getattr(importlib.import_module(module), function)(settings)
    _Child(worker, pipe).serve()


class _Child:
    def __init__(self, worker: Worker, pipe: Connection) -> None:
        self._worker = worker
        self._pipe = pipe
        self._sending = threading.Lock()
        self._controls: dict[str, Control] = {}
        self._working = threading.Lock()
        self._unload_asked = False

    def serve(self) -> None:
        self._say("ready")
        while True:
            try:
                message = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone, and nobody waits for what runs here
            if message[0] == "run":
                job: Job = message[1]
                self._controls[job.id] = Control()
                threading.Thread(target=self._run, args=(job,), name=f"job {job.id}").start()
            elif message[0] == "ask" and message[1] in self._controls:
                self._controls[message[1]].ask(message[2])
            elif message[0] == "unload":
                self._unload_asked = True
                threading.Thread(target=self._unload, name="unload").start()
            elif message[0] == "memory":
                threading.Thread(target=self._tell_memory, name="memory").start()

    def _tell_memory(self) -> None:
        try:
            told = self._worker.memory()
        except Exception as error:
            log.exception("the device's memory cannot be read")
            told = {"error": f"{type(error).__name__}: {error}"}
        self._say("memory", told)

    def _unload(self) -> None:
        """Between two jobs: whoever has the turn next does it first."""
        with self._working:
            self._unload_if_asked()

    def _unload_if_asked(self) -> None:
        if self._unload_asked:
            self._unload_asked = False
            self._worker.unload()

    def _run(self, job: Job) -> None:
        try:
            control = self._controls[job.id]
            with self._working:
                self._unload_if_asked()
                outcome = self._worker.run(job, lambda p: self._say("progress", job.id, p), control)
            if control.verdict == "cancel":
                raise Cancelled("the task was cancelled while it ran")
            self._say("done", job.id, outcome)
        except ServiceError as error:
            self._say("failed", job.id, error)
        except Exception as error:
            log.exception("job %s failed", job.id)
            self._say("failed", job.id, EngineFailed(f"{type(error).__name__}: {error}"))
        finally:
            del self._controls[job.id]

    def _say(self, *message: Any) -> None:
        with self._sending:
            self._pipe.send(message)
