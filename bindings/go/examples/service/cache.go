package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"kvlink"
)

// The model's cache: for each layer, blocks of tokens, of heads, of keys and values.
const (
	layers      = 4
	blockTokens = 16
	numBlocks   = 64
	heads       = 4
	dim         = 32
	tokenBytes  = heads * (dim + dim) * 2
	blockBytes  = blockTokens * tokenBytes
)

func newLayout() (*kvlink.Layout, error) {
	return kvlink.NewLayout(kvlink.LayoutDesc{
		Model:       "notebook",
		RegionBytes: []uint64{layers * numBlocks * blockBytes},
		Groups:      []kvlink.Group{{Kind: kvlink.Paged, BlockTokens: blockTokens, NumBlocks: numBlocks}},
		Attention: []kvlink.Attention{{
			Layers: []uint32{0, 1, 2, 3}, Order: "LBNHC", Heads: heads, NumHeads: heads, KeyDim: dim, ValueDim: dim,
			DType: kvlink.BF16,
		}},
	})
}

// request is a request's cache.
type request struct {
	tokens uint64
	blocks []uint32
}

func (r *request) lists() []kvlink.Blocks { return []kvlink.Blocks{{IDs: r.blocks}} }

// cache hands out blocks and knows which request has which.
type cache struct {
	memory *kvlink.SharedMemory

	mu       sync.Mutex
	free     []uint32
	requests map[string]*request
}

func newCache() (*cache, error) {
	memory, err := kvlink.NewSharedMemory(layers * numBlocks * blockBytes)
	if err != nil {
		return nil, err
	}
	c := &cache{memory: memory, requests: make(map[string]*request)}
	for id := range uint32(numBlocks) {
		c.free = append(c.free, id)
	}
	return c, nil
}

func (c *cache) allocate(tokens uint64) (*request, error) {
	need := (tokens + blockTokens - 1) / blockTokens
	c.mu.Lock()
	defer c.mu.Unlock()
	if tokens == 0 || need > uint64(len(c.free)) {
		return nil, fmt.Errorf("%d tokens need %d blocks, %d are free", tokens, need, len(c.free))
	}
	rest := uint64(len(c.free)) - need
	r := &request{tokens: tokens, blocks: append([]uint32(nil), c.free[rest:]...)}
	c.free = c.free[:rest]
	return r, nil
}

// release gives back the blocks of a request: nothing may touch them any more.
func (c *cache) release(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free = append(c.free, r.blocks...)
}

// put holds a request; it is an error if there is one of this name.
func (c *cache) put(id string, r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requests[id] != nil {
		return fmt.Errorf("request %q is held already", id)
	}
	c.requests[id] = r
	return nil
}

// take forgets a request, whose blocks are the caller's; nil if there is none.
func (c *cache) take(id string) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requests[id]
	delete(c.requests, id)
	return r
}

// rows calls f for the tokens of each block in each layer.
func (c *cache) rows(r *request, f func(row []byte)) {
	memory := c.memory.Bytes()
	for layer := range layers {
		left := int(r.tokens)
		for _, id := range r.blocks {
			at := (layer*numBlocks + int(id)) * blockBytes
			n := min(left, blockTokens)
			f(memory[at : at+n*tokenBytes])
			left -= n
		}
	}
}

// compute is the model: bytes that depend on the request's name, the layer and the token.
func (c *cache) compute(id string, r *request) {
	state := sha256.Sum256([]byte(id))
	c.rows(r, func(row []byte) {
		for at := 0; at < len(row); at += copy(row[at:], state[:]) {
			state = sha256.Sum256(state[:])
		}
	})
}

// digest is of a request that is held; false if there is none. The lock keeps it held meanwhile.
func (c *cache) digest(id string) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.requests[id]
	if r == nil {
		return "", false
	}
	h := sha256.New()
	c.rows(r, func(row []byte) { h.Write(row) })
	return hex.EncodeToString(h.Sum(nil)), true
}
