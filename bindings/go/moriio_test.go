package kvlink

import (
	"context"
	"net"
	"testing"
	"time"
)

const testHandshake = `{"engine_id":"127.0.0.1:6301","agent_metadata":"AAEC","kv_caches_base_addr":[1],"num_blocks":2,` +
	`"block_len":3,"attn_backend_name":"X","layers":[{"layer":"l0","regions":["AAEC"]}]}`

func freePort(t *testing.T) (string, uint16) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String(), uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestWorkersMeetAndTell(t *testing.T) {
	source := newRank(t, testDesc(testLayers, testBlocks, 8), Config{Instance: "source"})
	sink := newRank(t, testDesc(testLayers, testBlocks, 8), Config{Instance: "sink"})
	meetAt, meetPort := freePort(t)
	tellAt, tellPort := freePort(t)
	mustBe(t, sink.CloseMoriio(), ErrWrongState)
	decode := Moriio{Role: Decode, HandshakePort: meetPort, NotifyPort: tellPort, Handshake: []byte(testHandshake)}
	must(t, sink.OpenMoriio(decode))
	mustBe(t, sink.OpenMoriio(decode), ErrWrongState)
	must(t, source.OpenMoriio(Moriio{Role: Prefill}))

	met, err := source.MeetMoriio(patience(t), meetAt, 0)
	must(t, err)
	if string(met) != testHandshake {
		t.Fatal(string(met))
	}
	done := `{"type":"write_done","transfer_id":"tx-1","num_writers":2}`
	must(t, source.SendMoriio(patience(t), tellAt, []byte(done), 0))
	if said, ok := (<-sink.Events()).(MoriioMessage); !ok || said.Err != nil || string(said.JSON) != done {
		t.Fatalf("%+v", said)
	}
	mustBe(t, source.SendMoriio(patience(t), tellAt, []byte(`{"type":"release","transfer_id":"t"}`), 0), ErrInvalidArgument)

	must(t, sink.CloseMoriio())
	_, err = source.MeetMoriio(patience(t), meetAt, 100e6)
	mustBe(t, err, ErrUnreachable)
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = source.MeetMoriio(cancelled, meetAt, 0)
	mustBe(t, err, ErrCancelled)
}

func TestMessagesThatNobodyReadsCloseTheWorker(t *testing.T) {
	const most = 4
	source := newRank(t, testDesc(testLayers, testBlocks, 8), Config{Instance: "source"})
	sink := newRank(t, testDesc(testLayers, testBlocks, 8), Config{Instance: "sink", MaxEvents: most})
	at, port := freePort(t)
	must(t, sink.OpenMoriio(Moriio{Role: Decode, NotifyPort: port}))
	must(t, source.OpenMoriio(Moriio{Role: Prefill}))
	ctx := patience(t)
	for n := 1; n <= most+1; n++ {
		must(t, source.SendMoriio(ctx, at, []byte(`{"type":"write_failed","transfer_id":"tx"}`), 0))
		// The library counts what waits for the goroutine, too.
		for len(sink.Events()) < n {
			must(t, ctx.Err())
			time.Sleep(time.Millisecond)
		}
	}
	for range most {
		if said, ok := (<-sink.Events()).(MoriioMessage); !ok || said.Err != nil {
			t.Fatalf("%+v", said)
		}
	}
	last, ok := (<-sink.Events()).(MoriioMessage)
	if !ok {
		t.Fatalf("%+v", last)
	}
	mustBe(t, last.Err, ErrLimit)
	mustBe(t, sink.CloseMoriio(), ErrWrongState)
}
