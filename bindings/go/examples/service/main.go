// Service is a small HTTP service that holds the KV cache of requests and fetches it from services like itself.
//
//	service [-listen HOST:PORT] [-instance NAME]
//
//	PUT    /requests/ID?tokens=N         computes the cache of a request (here: bytes made from its name)
//	POST   /requests/ID/ticket           offers it: the answer is the ticket; once it was read it is no longer held
//	POST   /requests/ID/fetch?from=URL   fetches it from the service at URL
//	GET    /requests/ID                  a digest of its cache
//	DELETE /requests/ID                  forgets it
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net/http"
	"os/signal"
	"syscall"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where to serve HTTP")
	instance := flag.String("instance", "service", "name of the instance")
	flag.Parse()

	s, err := newService(*instance)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Addr: *listen, Handler: s.handler()}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stopped <- server.Shutdown(context.Background())
	}()
	err = server.ListenAndServe()
	if errors.Is(err, http.ErrServerClosed) {
		err = <-stopped
	}
	if err = errors.Join(err, s.close()); err != nil {
		log.Fatal(err)
	}
}
