package kvlink

import (
	"bytes"
	"strings"
	"testing"
)

const testUnique = "00112233445566778899aabbccddeeff"

func TestAddressesPortsAndRequestIDs(t *testing.T) {
	prefill, err := ZmqAddress("10.0.0.1", 6301, 61005)
	must(t, err)
	decode, err := ZmqAddress("10.0.0.2", 7301, 7501)
	must(t, err)
	if prefill != "host:10.0.0.1,handshake:6301,notify:61005" {
		t.Fatal(prefill)
	}
	_, err = ZmqAddress("a,b", 1, 1)
	mustBe(t, err, ErrInvalidArgument)
	port, err := RouterPort(6301, 0, 1, 3, 4)
	must(t, err)
	if port != 6304 {
		t.Fatal(port)
	}
	_, err = RouterPort(6301, 0, 2, 1, 2)
	mustBe(t, err, ErrInvalidArgument)

	id := "___prefill_addr_" + prefill + "___decode_addr_" + decode + "_" + testUnique
	route, err := ParseRoute("cmpl-" + id + "-0-abcdef12")
	must(t, err)
	if want := (Route{"10.0.0.1", 6301, 61005, "10.0.0.2", 7301, 7501, testUnique}); route != want {
		t.Fatalf("%+v", route)
	}
	again, err := route.Format()
	must(t, err)
	if again != id {
		t.Fatal(again)
	}
	route.DecodeHost = strings.Repeat("a", 300)
	_, err = route.Format()
	mustBe(t, err, ErrInvalidArgument)
	_, err = ParseRoute("cmpl-1")
	mustBe(t, err, ErrInvalidArgument)
}

func TestTicketTravelsInAnAnswer(t *testing.T) {
	answer := RouterAnswer{
		TransferID: "tx-1",
		ZmqAddress: "host:10.0.0.1,handshake:6301,notify:61005",
		Ticket:     []byte{0, 1, 255},
		DPRank:     1,
		DPSize:     2,
		TPSize:     4,
	}
	json, err := answer.JSON()
	must(t, err)
	p, err := ParseRouterParams([]byte(json))
	must(t, err)
	if !bytes.Equal(p.Ticket, answer.Ticket) || p.TransferID != "tx-1" || !p.DoRemotePrefill || p.DoRemoteDecode ||
		p.RemoteDPSize != 2 || p.RemoteTPSize != 4 || p.RemoteDPRank != 1 {
		t.Fatalf("%+v", p)
	}
	_, err = ParseRouterParams([]byte("{}"))
	mustBe(t, err, ErrInvalidArgument)
	answer.Ticket = nil
	_, err = answer.JSON()
	mustBe(t, err, ErrInvalidArgument)
}

func TestRegistrationTellsWhatBecomesOfIt(t *testing.T) {
	source := newRank(t, testDesc(testLayers, testBlocks, 8), Config{Instance: "source"})
	router := Router{Role: Decode, Mode: WriteMode, Discovery: "127.0.0.1:1", HTTPAddress: "127.0.0.1:8000"}
	registration, err := source.AttachRouter(router)
	must(t, err)
	state, ok := (<-source.Events()).(RouterState)
	if !ok || state.Registration != registration {
		t.Fatalf("%+v", state)
	}
	mustBe(t, state.Err, ErrUnreachable)
	must(t, registration.Detach())
	mustBe(t, registration.Detach(), ErrBadHandle)
	mustBe(t, Registration{}.Detach(), ErrBadHandle)
	router.HTTPAddress = "nowhere"
	_, err = source.AttachRouter(router)
	mustBe(t, err, ErrInvalidArgument)
}
