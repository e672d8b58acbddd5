"""What travels between the scheduler's half and the workers' halves."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata, KVConnectorMetadata

#: Block ids of each transferable group, by position; NO_BLOCK is a hole.
Lists = list[list[int]]


@dataclass
class Origin(KVConnectorHandshakeMetadata):
    """A worker's agent, as the scheduler's half needs it to write tickets."""

    ticket: bytes
    address: str


@dataclass
class Offer:
    """A request whose prefill ends with this step, for its reader."""

    request_id: str
    #: Its name between the instances: a request id may come again, a name does not.
    name: str
    blocks: Lists
    tokens: int


@dataclass
class Read:
    """An offered request to load into these blocks."""

    request_id: str
    ticket: bytes
    blocks: Lists
    #: One past the last token wanted.
    token_end: int


@dataclass
class Accept:
    """A request that a prefill instance will write into these blocks."""

    request_id: str
    name: str
    blocks: Lists
    tokens: int


@dataclass
class Write:
    """A chunk of a request that this step computes, to be written to a decode instance."""

    request_id: str
    name: str
    #: Address of the decode instance.
    address: str
    blocks: Lists
    token_begin: int
    token_end: int
    tokens: int


@dataclass
class StepMetadata(KVConnectorMetadata):
    """What the workers do in one step."""

    offers: list[Offer] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    accepts: list[Accept] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    #: Tickets of requests that are not wanted: their blocks at the source are free.
    releases: list[bytes] = field(default_factory=list)
    #: Names of offers that are taken back.
    withdrawn: list[str] = field(default_factory=list)
    #: Requests whose load, or whose writes, end early.
    cancelled: list[str] = field(default_factory=list)
    #: Requests whose blocks are taken away before this step computes: their writes must have ended by then.
    preempted: list[str] = field(default_factory=list)
    #: Whether the step computes nothing.
    idle: bool = False
