package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"kvlink"
)

type service struct {
	*cache
	agent *kvlink.Agent
	ended sync.WaitGroup // what waits for the agent

	linking sync.Mutex
	peers   map[string]kvlink.Peer // by address
}

func newService(instance string) (*service, error) {
	layout, err := newLayout()
	if err != nil {
		return nil, err
	}
	defer layout.Close()
	c, err := newCache()
	if err != nil {
		return nil, err
	}
	agent, err := kvlink.NewAgent(layout, kvlink.Config{Instance: instance})
	if err != nil {
		return nil, errors.Join(err, c.memory.Close())
	}
	s := &service{cache: c, agent: agent, peers: make(map[string]kvlink.Peer)}
	s.ended.Go(s.events)
	if err := agent.Register(0, c.memory); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close ends the agent first: nothing touches the memory afterwards.
func (s *service) close() error {
	err := s.agent.Close()
	s.ended.Wait()
	return errors.Join(err, s.memory.Close())
}

// events forgets peers that are gone: the next fetch shakes hands anew.
func (s *service) events() {
	for event := range s.agent.Events() {
		switch event := event.(type) {
		case kvlink.PeerDown:
			s.linking.Lock()
			for address, peer := range s.peers {
				if peer == event.Peer {
					delete(s.peers, address)
				}
			}
			s.linking.Unlock()
			if err := event.Peer.Disconnect(); err != nil && !errors.Is(err, kvlink.ErrClosed) {
				log.Print(err)
			}
		case kvlink.AgentFailed:
			log.Print(event.Err)
		}
	}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /requests/{id}", answer(s.compute))
	mux.HandleFunc("POST /requests/{id}/ticket", answer(s.ticket))
	mux.HandleFunc("POST /requests/{id}/fetch", answer(s.fetch))
	mux.HandleFunc("GET /requests/{id}", answer(s.get))
	mux.HandleFunc("DELETE /requests/{id}", answer(s.drop))
	return mux
}

var errNotHeld = errors.New("no such request")

func answer(f func(r *http.Request, id string) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := f(r, r.PathValue("id"))
		switch {
		case err == nil:
			_, err = w.Write(body)
			if err != nil {
				log.Print(err)
			}
		case errors.Is(err, errNotHeld):
			http.Error(w, err.Error(), http.StatusNotFound)
		case errors.Is(err, kvlink.ClassPeer), errors.Is(err, kvlink.ClassTransfer):
			http.Error(w, err.Error(), http.StatusBadGateway)
		default:
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}
}

func (s *service) compute(r *http.Request, id string) ([]byte, error) {
	tokens, err := strconv.ParseUint(r.FormValue("tokens"), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	q, err := s.allocate(tokens)
	if err != nil {
		return nil, err
	}
	s.cache.compute(id, q)
	return nil, s.keep(id, q)
}

// keep holds a request that is complete.
func (s *service) keep(id string, q *request) error {
	err := s.put(id, q)
	if err != nil {
		s.release(q)
	}
	return err
}

// reuse gives back the blocks of an operation that has ended, unless it could not be proven that nothing touches them.
func (s *service) reuse(q *request, err error) {
	if !errors.Is(err, kvlink.ErrQuarantined) {
		s.release(q)
	}
}

// ticket offers a request. Its blocks are free again when the offer has ended, whether somebody read it or not.
func (s *service) ticket(_ *http.Request, id string) ([]byte, error) {
	q := s.take(id)
	if q == nil {
		return nil, errNotHeld
	}
	offer, err := s.agent.Offer(kvlink.OfferParams{Request: id, Blocks: q.lists(), Tokens: q.tokens})
	if err != nil {
		return nil, errors.Join(err, s.keep(id, q))
	}
	s.ended.Go(func() {
		err := offer.Released(context.Background())
		if err != nil {
			log.Printf("offer of %s: %v", id, err)
		}
		s.reuse(q, err)
	})
	return offer.Ticket()
}

// fetch asks the service at from for a ticket and reads with it. A client that goes away ends the read.
func (s *service) fetch(r *http.Request, id string) ([]byte, error) {
	ticket, err := s.ask(r.Context(), r.FormValue("from"), id)
	if err != nil {
		return nil, err
	}
	info, err := kvlink.ParseTicket(ticket)
	if err != nil {
		return nil, err
	}
	peer, err := s.link(r.Context(), info.Address)
	if err != nil {
		return nil, err
	}
	q, err := s.allocate(info.Tokens)
	if err != nil {
		return nil, err
	}
	if _, err := peer.Read(r.Context(), kvlink.ReadParams{Ticket: ticket, Blocks: q.lists()}); err != nil {
		s.reuse(q, err)
		return nil, err
	}
	return nil, s.keep(id, q)
}

func (s *service) ask(ctx context.Context, from, id string) ([]byte, error) {
	at, err := url.JoinPath(from, "requests", url.PathEscape(id), "ticket")
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, at, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode == http.StatusNotFound {
		err = errNotHeld
	} else if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", at, response.Status, body)
	}
	return body, err
}

// link is the peer at this address; the first fetch from it shakes hands.
func (s *service) link(ctx context.Context, address string) (kvlink.Peer, error) {
	s.linking.Lock()
	defer s.linking.Unlock()
	if peer, ok := s.peers[address]; ok {
		return peer, nil
	}
	peer, err := s.agent.Handshake(ctx, address, kvlink.Inbound)
	if err == nil {
		s.peers[address] = peer
	}
	return peer, err
}

func (s *service) get(_ *http.Request, id string) ([]byte, error) {
	digest, ok := s.digest(id)
	if !ok {
		return nil, errNotHeld
	}
	return []byte(digest), nil
}

func (s *service) drop(_ *http.Request, id string) ([]byte, error) {
	q := s.take(id)
	if q == nil {
		return nil, errNotHeld
	}
	s.release(q)
	return nil, nil
}
