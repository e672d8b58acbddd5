"""Messages of peers' engines as an asynchronous iterator."""

from __future__ import annotations

import asyncio

from ._errors import LimitExceeded
from ._events import Event, Notification

# What waits here is not counted by the library's max_events any more.
_LIMIT = 65536


class Notifications:
    """Messages in the order of their arrival, each for one taker."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Notification | None] = asyncio.Queue()
        self._lost = 0

    def put(self, event: Event) -> None:
        """Adds a message, unless too many wait."""
        if self._queue.qsize() >= _LIMIT:
            self._lost += 1
        else:
            self._queue.put_nowait(Notification(event.peer, event.rank, event.payload))

    def end(self) -> None:
        """No more will come."""
        self._queue.put_nowait(None)

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> Notification:
        if self._lost and self._queue.empty():
            lost, self._lost = self._lost, 0
            raise LimitExceeded(f"{lost} notifications were dropped: {_LIMIT} were waiting")
        found = await self._queue.get()
        if found is None:
            # For the other takers.
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return found
