"""What an agent has under way. Each operation ends with one event; awaiting it waits for that event.

An operation is a future of asyncio (`asyncio.isfuture`) that differs in one thing: cancelling it asks kvlink to end it,
and it counts as cancelled only when its event says that nothing touches its blocks any more. So whenever an await of an
operation has ended, however it ended, its blocks may be reused; only `Quarantined` says otherwise.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._abi import Status
from ._errors import Quarantined, WrongState
from ._events import Event, Moved, Received
from ._library import lib
from ._peer import Peer

T = TypeVar("T")

# What is cancelled has ended already: its event, or the agent's failure, is in the queue.
_ENDED = (Status.BAD_HANDLE, Status.POISONED)

if TYPE_CHECKING:
    from ._agent import Agent

    _Future = asyncio.Future
else:
    # Only type checkers need telling: at run time it is a future by its protocol.
    _Future = Generic


class Operation(_Future[T]):
    """Something under way; made by methods of `Agent` and `Peer`."""

    # The protocol of futures that are not asyncio's own.
    _asyncio_future_blocking = False

    def __init__(self, agent: Agent, what: str) -> None:
        self._agent = agent
        self._what = what
        self._callbacks: list[tuple[Callable[[Any], object], Context]] = []
        self._cancel_message: Any = None
        self._cancelling = False
        self._future: asyncio.Future[T] | None = None
        #: Id of the transfer, offer or accept.
        self.id = 0
        #: What ended it; None before.
        self.event: Event | None = None

    def _outcome(self, event: Event) -> T:
        raise NotImplementedError

    def done(self) -> bool:
        """Whether its event has come: nothing touches its blocks any more."""
        return self.event is not None

    def cancel(self, msg: Any = None) -> bool:
        """Asks for its end; False if it has ended. Its event still comes, when nothing touches its blocks any more."""
        if self.event is not None:
            return False
        self._cancelling, self._cancel_message = True, msg
        self._request_cancel()
        return True

    def _request_cancel(self) -> None:
        self._agent._check(lib.kvlink_cancel(self._agent._handle, self.id), *_ENDED)

    def result(self) -> T:
        """What it came to; raises what made it fail, or WrongState before its end."""
        if self.event is None:
            raise WrongState(f"{self} has not ended")
        if self._future is not None:
            return self._future.result()
        if self.event.error is not None:
            raise self.event.error
        return self._outcome(self.event)

    def exception(self) -> BaseException | None:
        """What made it fail, or None."""
        if self.event is None:
            raise WrongState(f"{self} has not ended")
        return self.event.error if self._future is None else self._future.exception()

    def cancelled(self) -> bool:
        """Whether it was cancelled with `cancel` and has ended."""
        return self._future is not None and self._future.cancelled()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that serves it."""
        return self._attached().get_loop()

    def add_done_callback(self, fn: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Calls ``fn(self)`` from the event loop when it has ended."""
        loop = self._attached().get_loop()
        context = context or copy_context()
        if self.event is not None:
            loop.call_soon(fn, self, context=context)
        else:
            self._callbacks.append((fn, context))

    def remove_done_callback(self, fn: Callable[[Any], object]) -> int:
        """Takes a callback back; returns how often it was there."""
        before = len(self._callbacks)
        self._callbacks = [entry for entry in self._callbacks if entry[0] != fn]
        return before - len(self._callbacks)

    def _make_cancelled_error(self) -> BaseException:
        return (
            asyncio.CancelledError() if self._cancel_message is None else asyncio.CancelledError(self._cancel_message)
        )

    def __await__(self) -> Generator[Any, None, T]:
        self._attached()
        if self.event is None:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def _attached(self) -> asyncio.Future[T]:
        """The future that an event loop sees; the loop serves the agent from now on."""
        if self._future is None:
            loop = asyncio.get_running_loop()
            if self.event is None:
                self._agent._serve(loop)
            self._future = loop.create_future()
            if self.event is not None:
                self._settle(self._future, self.event)
        return self._future

    def _finish(self, event: Event, loop: asyncio.AbstractEventLoop | None) -> None:
        """Takes the event that ends it."""
        self.event = event
        if self._future is None and loop is not None and event.error is not None and not self._cancelling:
            # A failure that nobody asks for is then reported by asyncio.
            self._future = loop.create_future()
        if self._future is not None:
            self._settle(self._future, event)
            serving = self._future.get_loop()
            for fn, context in self._callbacks if not serving.is_closed() else ():
                serving.call_soon(fn, self, context=context)
            self._callbacks.clear()

    def _settle(self, future: asyncio.Future[T], event: Event) -> None:
        if self._cancelling and not isinstance(event.error, Quarantined):
            future.cancel(self._cancel_message)
        elif event.error is not None:
            future.set_exception(event.error)
        else:
            future.set_result(self._outcome(event))

    def __repr__(self) -> str:
        state = "under way" if self.event is None else "ended"
        return f"<kvlink.{type(self).__name__}: {self._what}, {state}>"


class Handshake(Operation[Peer]):
    """A handshake; its outcome is the peer."""

    def __init__(self, agent: Agent, what: str) -> None:
        super().__init__(agent, what)
        #: The peer; it can be used when the handshake has succeeded.
        self.peer = Peer(agent, 0)

    def _outcome(self, event: Event) -> Peer:
        return self.peer

    def _request_cancel(self) -> None:
        self._agent._check(lib.kvlink_disconnect(self._agent._handle, self.peer.id), *_ENDED)


class Exchange(Operation[Any]):
    """An exchange with a worker of vLLM's MoRIIOConnector; its outcome is what that worker said, or None."""

    def _outcome(self, event: Event) -> Any:
        return json.loads(event.payload) if event.payload else None


class Transfer(Operation[Moved]):
    """A read or a write."""

    def _outcome(self, event: Event) -> Moved:
        return Moved(event.nbytes, event.spans)

    def failed_blocks(self, group: int) -> list[int]:
        """The blocks of a group that this failed read left without valid data: just those must be recomputed."""
        return self._agent._failed_blocks(self.id, group)


class Offer(Operation[None]):
    """Blocks that are offered under a lease."""

    def _outcome(self, event: Event) -> None:
        return None

    @property
    def ticket(self) -> bytes:
        """Opaque bytes that a sink needs to read the offer."""
        return self._agent._ticket(self.id)

    def released(self) -> Offer:
        """Awaitable: returns when all consumers have the data, raises if they have not; the blocks are free."""
        return self


class Accept(Operation[Received]):
    """Blocks that a peer writes to; ended when all bytes have arrived, or never will."""

    def _outcome(self, event: Event) -> Received:
        return Received(event.nbytes, event.spans, event.payload)
