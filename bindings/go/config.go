package kvlink

/*
#include "shim.h"
*/
import "C"

import "time"

// Config configures an agent; zero means default everywhere but in Instance. No environment variable is read.
// Times are rounded up to milliseconds.
type Config struct {
	Instance         string // name of the instance; required
	Rank             uint32
	Ranks            uint32        // of the instance; 0: 1
	AllowRemote      bool          // may listen on other than loopback addresses without authentication
	Listen           string        // "host:port"; "": a free port of 127.0.0.1
	Advertise        string        // address that others shall use; "": the one that is listened on
	Leader           string        // address of rank 0; required on every other rank
	RequireTransport string        // "host", "host/shm", "nixl", "mori", ...; "": the best that works
	HostDisable      HostWay       // ways that must not be used
	Heartbeat        time.Duration // silence after which a peer is asked for a sign of life; 0: 1 s
	HeartbeatMisses  uint32        // after which it is dead; 0: 3
	JoinTimeout      time.Duration // until all ranks of the instance must have joined; 0: 10 min
	HandshakeTimeout time.Duration // 0: 30 s
	TransferTimeout  time.Duration // for transfers that name none; 0: 30 s
	Lease            time.Duration // for offers that name none; 0: 30 s
	MaxTransfers     uint32        // in flight; 0: 4096
	MaxOffers        uint32        // 0: 65536
	MaxAccepts       uint32        // 0: 65536
	MaxPeers         uint32        // 0: 1024
	MaxEvents        uint32        // that may wait before peers that notify are cut off; 0: 65536
	NIXLBackend      string        // "": "UCX"; see kvlink_agent_config_t for when NIXL is loaded
	NIXLParams       string        // of the backend, "key=value", one a line
	NIXLLibrary      string        // libnixl_capi.so, or where Python packages are; "": looked for
	NIXLPatience     time.Duration // for reads that are no longer wanted; 0: 3 s
	NIXLLanding      uint32        // where NIXL's reads land: 0 as they are, 1 in the blocks, 2 never there

	MoRIBackend       string        // "rdma", "xgmi"; "": "rdma"; see kvlink_agent_config_t for when MoRI is loaded
	MoRILibrary       string        // libkvlink_mori.so, or the directory that it is in; "": looked for
	MoRIHost          string        // IPv4 address for MoRI's control port; "": the one that others reach the agent at
	MoRIDevices       string        // names of RDMA devices, separated by commas; "": all
	MoRIPort          uint32        // MoRI's control port; 0: any
	MoRIQPPerTransfer uint32        // queue pairs that a transfer is spread over; 0: 1
	MoRIPostBatchSize uint32        // work requests that are posted at once; 0: MoRI's choice
	MoRINumWorkers    uint32        // threads that post; 0: 1
	MoRIPollMode      uint32        // how completions are noticed: 0 by polling, 1 by events
	MoRIPatience      time.Duration // for reads that are no longer wanted; 0: 3 s
}

func (p *pins) config(c *Config) *C.kvlink_agent_config_t {
	return &C.kvlink_agent_config_t{
		struct_size:          C.sizeof_kvlink_agent_config_t,
		rank:                 C.uint32_t(c.Rank),
		ranks:                C.uint32_t(c.Ranks),
		allow_remote:         flag(c.AllowRemote),
		instance:             p.text("instance", c.Instance),
		listen:               p.text("listen", c.Listen),
		advertise:            p.text("advertise", c.Advertise),
		leader:               p.text("leader", c.Leader),
		require_transport:    p.text("require_transport", c.RequireTransport),
		host_disable:         C.uint32_t(c.HostDisable),
		heartbeat_ms:         p.millis("heartbeat", c.Heartbeat),
		heartbeat_misses:     C.uint32_t(c.HeartbeatMisses),
		join_timeout_ms:      p.millis("join timeout", c.JoinTimeout),
		handshake_timeout_ms: p.millis("handshake timeout", c.HandshakeTimeout),
		transfer_timeout_ms:  p.millis("transfer timeout", c.TransferTimeout),
		lease_ms:             p.millis("lease", c.Lease),
		max_transfers:        C.uint32_t(c.MaxTransfers),
		max_offers:           C.uint32_t(c.MaxOffers),
		max_accepts:          C.uint32_t(c.MaxAccepts),
		max_peers:            C.uint32_t(c.MaxPeers),
		max_events:           C.uint32_t(c.MaxEvents),
		nixl_backend:         p.text("nixl_backend", c.NIXLBackend),
		nixl_params:          p.text("nixl_params", c.NIXLParams),
		nixl_library:         p.text("nixl_library", c.NIXLLibrary),
		nixl_patience_ms:     p.millis("NIXL patience", c.NIXLPatience),
		nixl_landing:         C.uint32_t(c.NIXLLanding),
		mori_backend:         p.text("mori_backend", c.MoRIBackend),
		mori_library:         p.text("mori_library", c.MoRILibrary),
		mori_host:            p.text("mori_host", c.MoRIHost),
		mori_devices:         p.text("mori_devices", c.MoRIDevices),
		mori_port:            C.uint32_t(c.MoRIPort),
		mori_qp_per_transfer: C.uint32_t(c.MoRIQPPerTransfer),
		mori_post_batch_size: C.uint32_t(c.MoRIPostBatchSize),
		mori_num_workers:     C.uint32_t(c.MoRINumWorkers),
		mori_poll_mode:       C.uint32_t(c.MoRIPollMode),
		mori_patience_ms:     p.millis("MoRI patience", c.MoRIPatience),
	}
}
