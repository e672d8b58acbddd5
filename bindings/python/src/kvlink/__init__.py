"""kvlink moves KV cache between the prefill and decode instances of an LLM service.

A `Layout` describes one rank's cache; an `Agent` moves requests between ranks that have shaken hands; a `Plan` gives an
engine with a transport of its own the spans to move. See docs/python.md.
"""

from ._abi import NO_BLOCK, Direction, DType, EventKind, GroupKind, Mode, ReachKind, Role, Status
from ._agent import Agent
from ._arrays import Memory, Strided, strided
from ._blocks import Blocks
from ._describe import attention, convolution, record, state
from ._errors import (
    BackendError,
    BadHandle,
    CallError,
    Cancelled,
    Deadline,
    Error,
    HostError,
    Incompatible,
    Incomplete,
    InternalError,
    InvalidArgument,
    InvalidBlocks,
    InvalidLayout,
    InvalidTicket,
    LeaseExpired,
    LimitExceeded,
    NoMemory,
    PeerDead,
    PeerError,
    Poisoned,
    Quarantined,
    TransferError,
    TransportUnavailable,
    UnknownRequest,
    Unreachable,
    WrongState,
)
from ._events import Event, Moved, Notification, Received, Statistics, TicketInfo, ticket_info, ticket_write
from ._layout import Finding, Layout
from ._library import lib as _lib
from ._notifications import Notifications
from ._operations import Accept, Exchange, Handshake, Offer, Operation, Transfer
from ._peer import Peer
from ._pieces import Attention, Axis, Extent, Group, Part, Record, Section, State, Tensor
from ._plan import Plan, Span, Spans
from ._router import Registration, Route, RouterParams, ZmqAddress, router_answer, router_params, router_port
from ._shared import shared_memory
from ._version import __version__

__all__ = [
    "NO_BLOCK",
    "Accept",
    "Agent",
    "Attention",
    "Axis",
    "BackendError",
    "BadHandle",
    "Blocks",
    "CallError",
    "Cancelled",
    "DType",
    "Deadline",
    "Direction",
    "Error",
    "Event",
    "EventKind",
    "Exchange",
    "Extent",
    "Finding",
    "Group",
    "GroupKind",
    "Handshake",
    "HostError",
    "Incompatible",
    "Incomplete",
    "InternalError",
    "InvalidArgument",
    "InvalidBlocks",
    "InvalidLayout",
    "InvalidTicket",
    "Layout",
    "LeaseExpired",
    "LimitExceeded",
    "Memory",
    "Mode",
    "Moved",
    "NoMemory",
    "Notification",
    "Notifications",
    "Offer",
    "Operation",
    "Part",
    "Peer",
    "PeerDead",
    "PeerError",
    "Plan",
    "Poisoned",
    "Quarantined",
    "ReachKind",
    "Received",
    "Record",
    "Registration",
    "Role",
    "Route",
    "RouterParams",
    "Section",
    "Span",
    "Spans",
    "State",
    "Statistics",
    "Status",
    "Strided",
    "Tensor",
    "TicketInfo",
    "Transfer",
    "TransferError",
    "TransportUnavailable",
    "UnknownRequest",
    "Unreachable",
    "WrongState",
    "ZmqAddress",
    "__version__",
    "attention",
    "convolution",
    "library_version",
    "record",
    "router_answer",
    "router_params",
    "router_port",
    "shared_memory",
    "state",
    "strided",
    "ticket_info",
    "ticket_write",
]


def library_version() -> str:
    """The version of the library in use."""
    version: bytes = _lib.kvlink_version()
    return version.decode()
