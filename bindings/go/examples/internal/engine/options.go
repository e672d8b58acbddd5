package engine

import (
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"kvlink"
)

// Options is the command line: who this rank is.
type Options struct {
	Instance  string
	Leader    string // address of rank 0; "" on rank 0 itself
	Layout    string // JSON file; "": built by hand where the program knows how
	Transport string // "host/shm", "host/cma", "host/tcp"; "": the best that works
	Rank      uint32
	Ranks     uint32
	Layers    uint32 // of the model
}

// Parse reads the command line.
func Parse() *Options {
	o := &Options{Ranks: 1}
	flag.StringVar(&o.Instance, "instance", os.Args[0], "name of the instance")
	flag.StringVar(&o.Leader, "leader", "", "address of rank 0")
	flag.StringVar(&o.Layout, "layout", "", "JSON file that describes the cache")
	flag.StringVar(&o.Transport, "transport", "", "transport that must be in effect")
	flag.Func("rank", "this rank", number(&o.Rank))
	flag.Func("ranks", "ranks of the instance", number(&o.Ranks))
	flag.Func("layers", "layers of the model", number(&o.Layers))
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("unknown option %s", flag.Arg(0))
	}
	return o
}

func number(to *uint32) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseUint(s, 10, 32)
		*to = uint32(n)
		return err
	}
}

// LoadLayout reads the layout's JSON file.
func (o *Options) LoadLayout() *kvlink.Layout {
	json, err := os.ReadFile(o.Layout)
	Check(err)
	layout, err := kvlink.LayoutFromJSON(json)
	Check(err)
	return layout
}

// betterWays are those that a peer would choose before the wanted one.
func betterWays(transport string) kvlink.HostWay {
	switch transport {
	case "", "host/shm":
		return 0
	case "host/cma":
		return kvlink.SharedMemoryWay
	}
	return kvlink.SharedMemoryWay | kvlink.CrossProcessWay
}

// Blocks reads block lists: "5,7,9/1/2" has ids 5, 7, 9 in group 0, 1 in group 1, 2 in group 2.
func Blocks(text string) []kvlink.Blocks {
	var lists []kvlink.Blocks
	for _, part := range strings.Split(text, "/") {
		var ids []uint32
		for _, word := range strings.FieldsFunc(part, func(r rune) bool { return r == ',' }) {
			id, err := strconv.ParseUint(word, 10, 32)
			if err != nil {
				log.Fatal(fmt.Errorf("block lists: %w", err))
			}
			ids = append(ids, uint32(id))
		}
		lists = append(lists, kvlink.Blocks{IDs: ids})
	}
	return lists
}

// Tokens reads a number of tokens.
func Tokens(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	Check(err)
	return n
}
