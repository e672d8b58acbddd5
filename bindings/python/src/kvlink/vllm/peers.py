"""Instances that this rank has to do with, by address. Whoever needs one that is not known yet is called when it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import kvlink

from .log import logger
from .stats import KVLinkStats

#: A range of layers that no model has: of nothing, for what only has something to tell.
NO_LAYERS = range(1 << 31, (1 << 31) + 1)

Begin = Callable[[kvlink.Peer], None]
Fail = Callable[[kvlink.Error], None]


@dataclass
class _Known:
    """A peer, and who waits for its handshake."""

    handshake: kvlink.Handshake
    waiting: list[tuple[Begin, Fail]] = field(default_factory=list)


class Peers:
    """Handshakes as they are needed, and peers that come again after a restart."""

    def __init__(self, agent: kvlink.Agent, stats: KVLinkStats) -> None:
        self._agent = agent
        self._stats = stats
        self._known: dict[tuple[str, kvlink.Direction], _Known] = {}

    def use(self, address: str, direction: kvlink.Direction, begin: Begin, fail: Fail) -> None:
        """Calls `begin` with the peer, now or when it is known; `fail` if that or the handshake fails."""
        known = self._known.get((address, direction))
        if known is None:
            try:
                known = _Known(self._agent.handshake(address, direction))
            except kvlink.Error as e:
                self._stats.count("failed_handshakes")
                fail(e)
                return
            self._known[address, direction] = known
        if not known.handshake.done():
            known.waiting.append((begin, fail))
            return
        try:
            begin(known.handshake.peer)
        except (kvlink.PeerError, kvlink.BadHandle, kvlink.InvalidTicket) as e:
            if known.waiting or not self._stale(e):
                fail(e)
                return
            # Another process answers at this address by now.
            self._drop(address, direction)
            self.use(address, direction, begin, fail)
        except kvlink.Error as e:
            fail(e)

    def shaken(self, handshake: kvlink.Handshake) -> None:
        """A handshake has ended."""
        key = next((k for k, v in self._known.items() if v.handshake is handshake), None)
        if key is None:
            return
        known = self._known[key]
        waiting, known.waiting = known.waiting, []
        assert handshake.event is not None
        error = handshake.event.error
        if error is None:
            ways = "; ".join(handshake.event.payload.decode().split("\n"))
            logger.info("peer %s: %s", key[0], ways)
        else:
            logger.error("no handshake with %s: %s", key[0], error)
            self._stats.count("failed_handshakes")
            del self._known[key]
        for begin, fail in waiting:
            if error is not None:
                fail(error)
                continue
            try:
                begin(handshake.peer)
            except kvlink.Error as e:
                fail(e)

    def down(self, event: kvlink.Event) -> None:
        """A peer is gone: one that we know, or one that reads from us."""
        gone = [key for key, known in self._known.items() if known.handshake.peer is event.peer]
        for key in gone:
            logger.warning("peer %s is gone: %s", key[0], event.error)
            self._drop(*key)
        if not gone:
            logger.warning("a peer that came to us is gone: %s", event.error)

    @staticmethod
    def _stale(error: kvlink.Error) -> bool:
        """Whether a new handshake with the same address may help."""
        return isinstance(error, kvlink.PeerDead | kvlink.BadHandle) or error.status in (
            kvlink.Status.INCARNATION,
            kvlink.Status.INVALID_TICKET,
        )

    def _drop(self, address: str, direction: kvlink.Direction) -> None:
        known = self._known.pop((address, direction))
        try:
            known.handshake.peer.disconnect()
        except kvlink.Error as e:
            logger.debug("peer %s was gone already: %s", address, e)
