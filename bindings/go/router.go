package kvlink

/*
#include "shim.h"
*/
import "C"

import (
	"time"
	"unsafe"
)

// Role is what an instance does.
type Role uint32

const (
	Prefill Role = C.KVLINK_ROLE_PREFILL
	Decode  Role = C.KVLINK_ROLE_DECODE
)

// Mode says who moves the data behind a router; all instances of a router agree.
type Mode uint32

const (
	// ReadMode: the decode side reads when the prefill side is done.
	ReadMode Mode = C.KVLINK_MODE_READ
	// WriteMode: the prefill side writes while it computes.
	WriteMode Mode = C.KVLINK_MODE_WRITE
)

// Router is an instance as a router shall know it.
type Router struct {
	Role        Role
	Mode        Mode
	Discovery   string        // the router's discovery address, "host:port"
	HTTPAddress string        // where the engine's HTTP server listens, "host:port"
	ZmqAddress  string        // where other instances reach this one, see ZmqAddress; "": the agent's address
	DPSize      uint32        // 0: 1
	TPSize      uint32        // 0: 1
	Beat        time.Duration // between heartbeats; 0: a second
}

// Registration is an instance registered with a router. Registrations can be compared.
type Registration struct {
	agent *Agent
	id    uint64
}

// RouterState: the connection to a router was made (Err is nil), or lost, or cannot be made.
type RouterState struct {
	Registration Registration
	Err          error
}

func (RouterState) event() {}

// AttachRouter registers this instance with a router and keeps it registered, for one rank of an instance. What becomes
// of it comes as RouterState. The router never answers: it drops instances of another mode, and only its log says so.
func (a *Agent) AttachRouter(router Router) (Registration, error) {
	pin := pins{call: "kvlink_router_attach"}
	defer pin.release()
	c := C.kvlink_router_t{
		struct_size:  C.sizeof_kvlink_router_t,
		role:         C.uint32_t(router.Role),
		mode:         C.uint32_t(router.Mode),
		beat_ms:      pin.millis("Beat", router.Beat),
		dp_size:      C.uint32_t(router.DPSize),
		tp_size:      C.uint32_t(router.TPSize),
		discovery:    pin.text("Discovery", router.Discovery),
		http_address: pin.text("HTTPAddress", router.HTTPAddress),
		zmq_address:  pin.text("ZmqAddress", router.ZmqAddress),
		user_data:    0,
	}
	if pin.err != nil {
		return Registration{}, pin.err
	}
	var id C.uint64_t
	if err := a.check(pin.call, C.go_kvlink_router_attach(a.handle, &c, &id)); err != nil {
		return Registration{}, err
	}
	return Registration{a, uint64(id)}, nil
}

// Detach ends the registration. The router forgets the instance after its time to live; until then it may still send
// requests.
func (r Registration) Detach() error {
	const call = "kvlink_router_detach"
	if r.agent == nil {
		return &Error{Call: call, Status: ErrBadHandle, Message: "the zero Registration"}
	}
	return r.agent.check(call, C.go_kvlink_router_detach(r.agent.handle, C.uint64_t(r.id)))
}

// ZmqAddress writes "host:10.0.0.1,handshake:6301,notify:61005".
func ZmqAddress(host string, handshake, notify uint16) (string, error) {
	pin := pins{call: "kvlink_router_zmq_address"}
	defer pin.release()
	h := pin.text("host", host)
	if pin.err != nil {
		return "", pin.err
	}
	return text(pin.call, func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_router_zmq_address(h, C.uint32_t(handshake), C.uint32_t(notify), buf, cap, n)
	})
}

// RouterPort is the port of a rank, as vLLM's connector counts; refused where ranks would share one.
func RouterPort(base uint16, dpRank, dpSize, tpRank, tpSize uint32) (uint16, error) {
	var port C.uint32_t
	err := check("kvlink_router_port", C.go_kvlink_router_port(C.uint32_t(base), C.uint32_t(dpRank), C.uint32_t(dpSize),
		C.uint32_t(tpRank), C.uint32_t(tpSize), &port))
	return uint16(port), err
}

// Route says which instances a router chose for a request.
type Route struct {
	PrefillHost      string
	PrefillHandshake uint32
	PrefillNotify    uint32
	DecodeHost       string
	DecodeHandshake  uint32
	DecodeNotify     uint32
	Unique           string // 32 hexadecimal digits that tell the request from others
}

// ParseRoute reads a request id of the router, or what vLLM made of one.
func ParseRoute(requestID string) (Route, error) {
	pin := pins{call: "kvlink_route_parse"}
	defer pin.release()
	id := pin.text("requestID", requestID)
	if pin.err != nil {
		return Route{}, pin.err
	}
	var c C.kvlink_route_t
	c.struct_size = C.sizeof_kvlink_route_t
	if err := check(pin.call, C.go_kvlink_route_parse(id, &c)); err != nil {
		return Route{}, err
	}
	return Route{
		PrefillHost:      fixed(c.prefill_host[:]),
		PrefillHandshake: uint32(c.prefill_handshake),
		PrefillNotify:    uint32(c.prefill_notify),
		DecodeHost:       fixed(c.decode_host[:]),
		DecodeHandshake:  uint32(c.decode_handshake),
		DecodeNotify:     uint32(c.decode_notify),
		Unique:           fixed(c.unique[:]),
	}, nil
}

// Format writes the request id as a router does.
func (r Route) Format() (string, error) {
	var c C.kvlink_route_t
	c.struct_size = C.sizeof_kvlink_route_t
	c.prefill_handshake, c.prefill_notify = C.uint32_t(r.PrefillHandshake), C.uint32_t(r.PrefillNotify)
	c.decode_handshake, c.decode_notify = C.uint32_t(r.DecodeHandshake), C.uint32_t(r.DecodeNotify)
	// What is too long fills the array, and is refused: it has no NUL.
	put(c.prefill_host[:], r.PrefillHost)
	put(c.decode_host[:], r.DecodeHost)
	put(c.unique[:], r.Unique)
	return text("kvlink_route_format", func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_route_format(&c, buf, cap, n)
	})
}

func put(array []C.char, s string) {
	for i := 0; i < len(s) && i < len(array); i++ {
		array[i] = C.char(s[i])
	}
}

// RouterAnswer is what a prefill instance answers in READ mode.
type RouterAnswer struct {
	TransferID string // of the request's own parameters
	ZmqAddress string // as it was registered
	Ticket     []byte
	DPRank     uint32
	DPSize     uint32 // 0: 1
	TPSize     uint32 // 0: 1
}

// JSON is the value of kv_transfer_params.
func (r RouterAnswer) JSON() (string, error) {
	pin := pins{call: "kvlink_router_answer"}
	defer pin.release()
	c := C.kvlink_router_answer_t{
		struct_size: C.sizeof_kvlink_router_answer_t,
		dp_rank:     C.uint32_t(r.DPRank),
		dp_size:     C.uint32_t(r.DPSize),
		tp_size:     C.uint32_t(r.TPSize),
		transfer_id: pin.text("TransferID", r.TransferID),
		zmq_address: pin.text("ZmqAddress", r.ZmqAddress),
		ticket:      pin.bytes(r.Ticket),
		ticket_len:  C.size_t(len(r.Ticket)),
	}
	if pin.err != nil {
		return "", pin.err
	}
	return text(pin.call, func(buf *C.char, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_router_answer(&c, buf, cap, n)
	})
}

// RouterParams is what kv_transfer_params of a request say.
type RouterParams struct {
	DoRemoteDecode  bool
	DoRemotePrefill bool
	TransferID      string
	RemoteDPSize    uint32
	RemoteTPSize    uint32 // 0: not said
	RemoteDPRank    uint32 // AllRanks: not said
	Ticket          []byte // the prefill side's; empty in WRITE mode
}

// ParseRouterParams reads the JSON of kv_transfer_params.
func ParseRouterParams(json []byte) (RouterParams, error) {
	var c C.kvlink_router_params_t
	c.struct_size = C.sizeof_kvlink_router_params_t
	at := (*C.char)(unsafe.Pointer(unsafe.SliceData(json)))
	ticket, err := list("kvlink_router_params", nil, func(buf *byte, cap C.size_t, n *C.size_t) C.go_result {
		return C.go_kvlink_router_params(at, C.size_t(len(json)), &c, unsafe.Pointer(buf), cap, n)
	})
	if err != nil {
		return RouterParams{}, err
	}
	return RouterParams{
		DoRemoteDecode:  c.do_remote_decode != 0,
		DoRemotePrefill: c.do_remote_prefill != 0,
		TransferID:      fixed(c.transfer_id[:]),
		RemoteDPSize:    uint32(c.remote_dp_size),
		RemoteTPSize:    uint32(c.remote_tp_size),
		RemoteDPRank:    uint32(c.remote_dp_rank),
		Ticket:          ticket,
	}, nil
}
