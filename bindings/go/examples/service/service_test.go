package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

func start(t *testing.T, instance string) (*service, *httptest.Server) {
	t.Helper()
	s, err := newService(instance)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.handler())
	t.Cleanup(func() {
		server.Close()
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s, server
}

func call(t *testing.T, method, url string, want int) string {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != want {
		t.Errorf("%s %s: %s: %s", method, url, response.Status, body)
	}
	return string(body)
}

func contents(s *service, id string) []byte {
	var all []byte
	s.rows(s.requests[id], func(row []byte) { all = append(all, row...) })
	return all
}

func TestTwoServicesMoveRequests(t *testing.T) {
	prefill, from := start(t, "prefill")
	decode, to := start(t, "decode")
	// The two sides give out different blocks.
	call(t, "PUT", to.URL+"/requests/other?tokens=33", 200)

	for i, tokens := range []int{1, 16, 100} {
		id := fmt.Sprintf("r%d", i)
		call(t, "PUT", fmt.Sprintf("%s/requests/%s?tokens=%d", from.URL, id, tokens), 200)
		want := contents(prefill, id)
		digest := call(t, "GET", from.URL+"/requests/"+id, 200)
		call(t, "POST", to.URL+"/requests/"+id+"/fetch?from="+from.URL, 200)
		if got := contents(decode, id); len(want) != layers*tokens*tokenBytes || !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes are not the %d expected", id, len(got), len(want))
		}
		if call(t, "GET", to.URL+"/requests/"+id, 200) != digest {
			t.Fatal("the digest is another one")
		}
		call(t, "GET", from.URL+"/requests/"+id, 404)
	}
	if len(decode.peers) != 1 {
		t.Fatalf("%d peers", len(decode.peers))
	}
	call(t, "POST", to.URL+"/requests/r0/fetch?from="+from.URL, 404)
	call(t, "PUT", to.URL+"/requests/r0?tokens=5", 400)
	call(t, "DELETE", to.URL+"/requests/r0", 200)
	call(t, "DELETE", to.URL+"/requests/r0", 404)
	call(t, "PUT", to.URL+"/requests/large?tokens=100000", 400)
}

func TestRequestsMoveAtTheSameTime(t *testing.T) {
	_, from := start(t, "prefill")
	_, to := start(t, "decode")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				id := fmt.Sprintf("r%d-%d", i, j)
				call(t, "PUT", from.URL+"/requests/"+id+"?tokens=20", 200)
				digest := call(t, "GET", from.URL+"/requests/"+id, 200)
				call(t, "POST", to.URL+"/requests/"+id+"/fetch?from="+from.URL, 200)
				if call(t, "GET", to.URL+"/requests/"+id, 200) != digest {
					t.Errorf("%s has another digest", id)
				}
				// And back.
				call(t, "POST", from.URL+"/requests/"+id+"/fetch?from="+to.URL, 200)
				call(t, "DELETE", from.URL+"/requests/"+id, 200)
			}
		})
	}
	wg.Wait()
}
