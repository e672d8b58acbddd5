"""What ``kv_connector_extra_config`` may say."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

TRANSPORTS = ("auto", "host", "nixl", "mori")
MODES = ("read", "write")


@dataclass(frozen=True)
class Settings:
    """Settings of the connector; docs/vllm.md has a table of them."""

    #: Who moves the data: the decode side reads, or the prefill side writes layer by layer.
    mode: str = "read"
    #: The transport that must be in effect; "auto": the best one that works.
    transport: str = "auto"
    #: Where rank 0 listens, "host:port"; by default a free port of 127.0.0.1. Other ranks take free ports there.
    listen: str = ""
    #: Host name or address that others shall use.
    advertise: str = ""
    #: Listen on other than loopback addresses, without authentication.
    allow_remote: bool = False
    #: Seconds that a prefilled request waits to be read.
    kv_lease_duration: float = 60.0
    #: Seconds for one transfer.
    transfer_timeout: float = 30.0
    #: Seconds for a handshake.
    handshake_timeout: float = 30.0
    #: Seconds of silence after which a peer is asked for a sign of life; after three it is dead.
    heartbeat: float = 3.0
    #: NIXL's backend.
    nixl_backend: str = ""
    #: NIXL's library, or the directory that its package is installed in; by default that of this environment.
    nixl_library: str = ""
    #: MoRI-IO's backend: "rdma" or "xgmi".
    mori_backend: str = ""
    #: libkvlink_mori.so, or the directory that it is in; by default that of kvlink's library.
    mori_library: str = ""
    #: RDMA devices, or "^" and those to leave out; by default all.
    mori_devices: str = ""
    #: Queue pairs that a transfer is spread over.
    mori_qp_per_transfer: int = 0
    #: Work requests that are posted at once.
    mori_post_batch_size: int = 0
    #: Threads of MoRI that post.
    mori_num_workers: int = 0
    #: Router that speaks the moriio discovery protocol; none by default.
    proxy_ip: str = ""
    #: The router's discovery port.
    proxy_ping_port: int = 36367
    #: Port of this server, as the router shall call it.
    http_port: int = 0
    #: Host of this server, as the router shall call it; by default that of `listen`.
    host_ip: str = ""

    @classmethod
    def of(cls, extra: dict[str, Any]) -> Settings:
        """Reads the settings; unknown names and values are errors."""
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in extra.items():
            if name not in known:
                raise ValueError(f"kv_connector_extra_config has {name!r}; known are {', '.join(known)}")
            default = known[name].default
            assert default is not MISSING
            kind = type(default)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise ValueError(f"kv_connector_extra_config: {name} is {value!r}, not of type {kind.__name__}")
            values[name] = value
        settings = cls(**values)
        for name, allowed in (("mode", MODES), ("transport", TRANSPORTS)):
            if getattr(settings, name) not in allowed:
                given = getattr(settings, name)
                raise ValueError(f"kv_connector_extra_config: {name} is {given!r}, known are {', '.join(allowed)}")
        if settings.proxy_ip and not settings.http_port:
            raise ValueError(
                "kv_connector_extra_config: proxy_ip needs http_port, where the router reaches this server"
            )
        return settings
