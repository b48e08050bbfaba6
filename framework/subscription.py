"""A framework's subscription: the events of the leading master, and the calls that go with them.

Owns one event stream at a time, and comes back by itself when it is lost: with the framework id, after a
growing, jittered pause. The stream's id is a fencing token: of two schedulers with one framework id only the
one that subscribed last is heard. Must never: take the subscription back from a scheduler that is known to
have come later, call in the name of a stream that has ended, or report the same state twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

import aiohttp

from moorage.framework import messages
from moorage.framework.master import Master, reaching
from moorage.framework.messages import Json
from moorage.framework.recordio import RecordReader
from moorage.wire import errors

log = logging.getLogger(__name__)

PATH = "/api/v1/scheduler"
HEARTBEATS_MISSED = 3  # so many intervals of silence, and the connection is dead


@dataclass(frozen=True)
class Lost:
    """The subscription was lost, and ``error`` says why. The next event is a SUBSCRIBED: reconcile then."""

    error: errors.MoorageError


Event = Json | Lost


class Backoff:
    """Pauses between attempts: doubling, of which a random half to whole is waited."""

    def __init__(self, first_s: float, max_s: float, rng: random.Random) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng
        self._next_s = first_s

    def reset(self) -> None:
        self._next_s = self._first_s

    def pause_s(self) -> float:
        pause = self._next_s * self._rng.uniform(0.5, 1.0)
        self._next_s = min(2 * self._next_s, self._max_s)
        return pause


class Subscription:
    """Iterate over it: the events of the master as dicts, heartbeats left out, and :class:`Lost`.

    ``framework_info``: a FrameworkInfo in JSON, without ``id``. ``framework_id``: from an earlier
    subscription; None makes a new framework, and the id that SUBSCRIBED brings must be on stable storage
    before anything else is done with it. It is kept here in ``framework_id``, and used to come back.

    Whoever iterates may be cancelled and go on later: no event is lost by that, only an attempt to subscribe.
    The iteration raises, for good: FailedOver, FrameworkRemoved, Invalid (the master refuses the framework,
    with its text), AuthenticationFailed. All else is tried again: ``last_error`` says what went wrong last.
    Events wait in the connection while nobody iterates, and no silence is noticed. End with ``close()``.
    """

    def __init__(self, master: Master, framework_info: Json, framework_id: str | None = None) -> None:
        self.framework_id = framework_id
        self.last_error: errors.MoorageError | None = None
        self._master = master
        self._info = framework_info
        self._stream: _Stream | None = None
        self._ended: errors.MoorageError | None = None
        self._closed = False
        self._due = 0.0  # when the next attempt may be made, in the loop's time
        timings = master.timings
        self._backoff = Backoff(timings.backoff_first_s, timings.backoff_max_s, random.Random())

    @property
    def leader(self) -> str | None:
        """URL of the master that is subscribed to; None while there is no subscription."""
        return None if self._stream is None else self._stream.base

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        if self._ended is not None:
            raise self._ended
        try:
            while not self._closed:
                if self._stream is None:
                    return await self._subscribe()
                stream = self._stream
                event = await stream.next(stream.silence_s)
                if event["type"] == "ERROR":
                    raise messages.error_of(stream.base, event)
                if event["type"] != "HEARTBEAT":
                    return event
        except (errors.Unavailable, errors.ProtocolError) as error:
            if not self._closed:
                return self._lost(error)
        except errors.MoorageError as error:
            self._end(error)
            raise
        raise StopAsyncIteration

    async def call(self, kind: str, body: Json | None = None) -> None:
        """A call of the scheduler API, such as ``call("REVIVE")`` or ``call("ACCEPT", {...})``. When this
        returns the master has read it: whether it had any effect, only events say.

        Raises Invalid (with the master's text), Unavailable (not subscribed, or not any more: it had no
        effect), ConnectionLost or DeadlineExceeded (it may have arrived), AuthenticationFailed.
        """
        stream = self._stream
        if stream is None:
            why = f" ({self.last_error})" if self.last_error is not None else ""
            raise errors.Unavailable(f"{kind} was not sent: not subscribed to a Mesos master now{why}")
        call = {**messages.call_of(kind, body), "framework_id": {"value": self.framework_id}}
        response = await self._master.post(stream.base, PATH, call, stream_id=stream.id)
        raw = await self._master.read(stream.base, response)
        if response.status in (200, 202):
            return
        if messages.is_superseded(response.status, raw):
            stream.superseded = True
            raise errors.Unavailable(f"{kind} had no effect: another scheduler subscribed as this framework")
        if response.status == 307:
            raise errors.Unavailable(f"{kind} had no effect: the Mesos master {stream.base} leads no more")
        if messages.is_unsubscribed(response.status, raw):
            raise errors.Unavailable(f"{kind} had no effect: {stream.base} says {messages.shown(raw)}")
        raise messages.refusal(stream.base, kind, response.status, raw)

    async def update(self, framework_info: Json) -> None:
        """Tell the master another FrameworkInfo, which also counts when this comes back. Raises as call()."""
        info = {**framework_info, "id": {"value": self.framework_id}}
        await self.call("UPDATE_FRAMEWORK", {"framework_info": info})
        self._info = framework_info

    def close(self) -> None:
        """As a scheduler that dies: the framework and its tasks live on until its failover timeout."""
        self._closed = True
        self._drop()

    # -- coming and going ------------------------------------------------------------------------------

    async def _subscribe(self) -> Json:
        """The SUBSCRIBED of a new stream, however many attempts it takes. Raises what ends it for good."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._due - loop.time())
            if self._closed:
                raise StopAsyncIteration
            try:
                stream, event = await self._attempt()
            except (errors.Unavailable, errors.ProtocolError) as error:
                self.last_error = error
                pause = self._pause()
                log.warning("not subscribed: %s; the next attempt is in %.1f s", error, pause)
                continue
            if self._closed:
                stream.response.close()
                raise StopAsyncIteration
            # no await until it is returned: the stream has its owner, and SUBSCRIBED comes first
            self._stream, self.last_error = stream, None
            log.info("subscribed to the Mesos master %s as framework %s", stream.base, self.framework_id)
            return event

    async def _attempt(self) -> tuple[_Stream, Json]:
        info = dict(self._info)
        call: Json = {"type": "SUBSCRIBE", "subscribe": {"framework_info": info}}
        if self.framework_id is not None:
            call["framework_id"] = info["id"] = {"value": self.framework_id}
        # Not repeated at once elsewhere: without an id each SUBSCRIBE that arrives makes a framework.
        base, response = await self._master.open(PATH, call, repeatable=False)
        try:
            if response.status != 200:
                raw = await self._master.read(base, response)
                raise messages.refusal(base, "SUBSCRIBE", response.status, raw)
            stream = _Stream(base, response)
            event = await stream.next(self._master.timings.answer_s)
            said = messages.subscribed(base, event, self._master.timings.heartbeat_s)
            self.framework_id, stream.silence_s = said.framework_id, HEARTBEATS_MISSED * said.heartbeat_s
        except BaseException:
            response.close()
            raise
        return stream, event

    def _lost(self, error: errors.MoorageError) -> Lost:
        stream = self._stream
        assert stream is not None
        self._drop()
        if stream.superseded:
            # The ERROR that says so need not have arrived. To come back would be to fence the other one.
            end = messages.failed_over(stream.base)
            self._end(end)
            raise end from error
        if asyncio.get_running_loop().time() - stream.since >= self._master.timings.steady_s:
            self._backoff.reset()
        self.last_error = error
        pause = self._pause()
        log.warning("subscription lost: %s; the next attempt is in %.1f s", error, pause)
        return Lost(error)

    def _pause(self) -> float:
        pause = self._backoff.pause_s()
        self._due = asyncio.get_running_loop().time() + pause
        return pause

    def _end(self, error: errors.MoorageError) -> None:
        self._drop()
        self._ended = self.last_error = error

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.response.close()


class _Stream:
    """One answer to SUBSCRIBE, event by event."""

    def __init__(self, base: str, response: aiohttp.ClientResponse) -> None:
        self.base = base
        self.response = response
        self.id = response.headers.get("Mesos-Stream-Id", "")
        self.since = asyncio.get_running_loop().time()
        self.silence_s = 0.0  # until SUBSCRIBED has come
        self.superseded = False  # by another scheduler's stream
        self._records = RecordReader()
        if not self.id:
            raise errors.ProtocolError(f"{base} answers SUBSCRIBE without a stream id: is it a Mesos master?")

    async def next(self, silence_s: float) -> Json:
        """The next event. Raises ConnectionLost (ended, broken, or nothing came for ``silence_s``) or
        ProtocolError. May be cancelled: what has come is kept."""
        while (record := self._records.next_record()) is None:
            try:
                with reaching(self.base):
                    async with asyncio.timeout(silence_s):
                        chunk = await self.response.content.readany()
            except errors.DeadlineExceeded:
                raise errors.ConnectionLost(
                    f"nothing came from the Mesos master {self.base} for {silence_s:g} s, no heartbeat either"
                ) from None
            if not chunk:
                where = " in the middle of an event" if self._records.inside else ""
                raise errors.ConnectionLost(f"the Mesos master {self.base} ended the stream{where}")
            self._records.feed(chunk)
        return messages.parse_event(self.base, record)
