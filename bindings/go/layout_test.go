package kvlink

import (
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// One entry of every form; what the library understood is compared with what was said.
func TestEveryFormReachesTheLibrary(t *testing.T) {
	desc := LayoutDesc{
		Model:       "forms",
		RegionBytes: []uint64{1 << 20, 1 << 20, 1 << 20, 1 << 20},
		Groups: []Group{
			{Kind: Paged, BlockTokens: 16, NumBlocks: 4, Reach: Window, ReachTokens: 64},
			{Kind: Slots, BlockTokens: 1, NumBlocks: 2},
		},
		Attention: []Attention{{
			Layers: []uint32{0}, Role: "attn", Order: "LBNHC", Heads: 4, FirstHead: 2, NumHeads: 2, KeyDim: 8, ValueDim: 8,
			Planes: true, ValueOffset: 1 << 19, DType: F16,
		}},
		Records: []Record{{Layers: []uint32{1}, Role: "mla", Region: 1, Elements: 576, DType: BF16}},
		States: []State{{
			Layers: []uint32{2}, Group: 1, Region: 2, StateOffset: 4096, SlotStride: 1 << 16, LayerStride: 1 << 17,
			Conv: []Section{{Units: 8, Width: 4, Count: 8}}, ConvRows: 3, ConvDType: BF16,
			State: Section{Units: 8, Width: 16, Count: 8}, StateDType: F32,
		}},
		Tensors: []Tensor{{
			Layer: 3, DType: U8, Role: "extra", Axes: []Axis{{Name: "channel", Extent: 32}},
			Parts: []Part{{Region: 3, BlockStride: 512, TokenStride: 32, Extents: []Extent{{Len: 32, Stride: 1}}}},
		}},
	}
	l := newLayoutOf(t, desc)
	groups, err := l.Groups()
	must(t, err)
	want := []Group{desc.Groups[0], desc.Groups[1]}
	for i := range want {
		want[i].ContextSize, want[i].ContextInterleave = groups[i].ContextSize, groups[i].ContextInterleave // normalised
	}
	if !reflect.DeepEqual(groups, want) {
		t.Fatalf("%+v", groups)
	}
	regions, err := l.Regions()
	must(t, err)
	if !reflect.DeepEqual(regions, desc.RegionBytes) {
		t.Fatal(regions)
	}
	text, err := l.JSON()
	must(t, err)
	if !json.Valid([]byte(text)) {
		t.Fatal(text)
	}
	for _, word := range []string{"forms", "attn", "mla", "extra", "channel"} {
		if !strings.Contains(text, word) {
			t.Errorf("%s is missing in %s", word, text)
		}
	}
	again, err := LayoutFromJSON([]byte(text))
	must(t, err)
	same, err := again.JSON()
	must(t, err)
	if same != text {
		t.Error("the description changed on its way")
	}
	must(t, again.Close())
	must(t, again.Close())
	_, err = again.JSON()
	mustBe(t, err, ErrBadHandle)

	desc.Tensors[0].Parts[0].Extents = nil
	_, err = NewLayout(desc)
	mustBe(t, err, ErrInvalidArgument)
}

func TestFindingsNameBothValues(t *testing.T) {
	source := newLayoutOf(t, testDesc(testLayers, testBlocks, 8))
	desc := testDesc(testLayers, testBlocks, 8)
	findings, err := CheckLayouts([]*Layout{source}, []*Layout{newLayoutOf(t, desc)}, 0)
	must(t, err)
	if findings != nil {
		t.Fatal(findings)
	}
	desc.Attention[0].DType = F16
	findings, err = CheckLayouts([]*Layout{source}, []*Layout{newLayoutOf(t, desc)}, 0)
	mustBe(t, err, ErrIncompatible)
	if len(findings) == 0 || !strings.Contains(findings[0].Source, "bf16") || !strings.Contains(findings[0].Destination, "f16") {
		t.Fatalf("%+v", findings)
	}
	_, err = CheckLayouts([]*Layout{source}, []*Layout{nil}, 0)
	mustBe(t, err, ClassCall)
}

func TestPlansExpandToMergedSpans(t *testing.T) {
	layouts := []*Layout{newLayoutOf(t, testDesc(testLayers, testBlocks, 8))}
	plan, err := NewPlan(layouts, layouts, 0, 0)
	must(t, err)
	text, err := plan.Explain()
	must(t, err)
	if plan.Empty() || text == "" {
		t.Fatal(text)
	}
	request := PlanRequest{TokenTotal: 64, SourceBlocks: blocksOf(0, 1, 4, 5), DestinationBlocks: blocksOf(2, 3, 4, 5)}
	first := Span{Len: 99}
	spans, err := plan.AppendSpans([]Span{first}, request)
	must(t, err)
	// In each layer blocks 0 and 1 touch on both sides, and so do 4 and 5.
	if len(spans) != 1+2*testLayers || spans[0] != first {
		t.Fatalf("%+v", spans)
	}
	if spans[1] != (Span{SrcOffset: 0, DstOffset: 2 * testBlockBytes, Len: 2 * testBlockBytes}) {
		t.Fatalf("%+v", spans[1])
	}
	again, err := plan.AppendSpans(spans[:0], request)
	must(t, err)
	if &again[0] != &spans[0] || len(again) != 2*testLayers {
		t.Fatal("room was not used")
	}
	request.SourceBlocks = blocksOf(0, 1)
	_, err = plan.AppendSpans(nil, request)
	mustBe(t, err, ErrInvalidBlocks)
	must(t, plan.Close())
	must(t, plan.Close())
	_, err = plan.AppendSpans(nil, request)
	mustBe(t, err, ErrBadHandle)
}

func TestRanksWithNothingToExchangeHaveAnEmptyPlan(t *testing.T) {
	half := func(first uint64) *Layout {
		desc := testDesc(testLayers, testBlocks, 8)
		desc.Attention[0].FirstHead, desc.Attention[0].NumHeads = first, 1
		return newLayoutOf(t, desc)
	}
	layouts := []*Layout{half(0), half(1)}
	plan, err := NewPlan(layouts, layouts, 0, 1)
	must(t, err)
	spans, err := plan.AppendSpans(nil, PlanRequest{})
	must(t, err)
	if !plan.Empty() || spans != nil {
		t.Fatal(spans)
	}
	must(t, plan.Close())
}

func TestForgottenLayoutsAndPlansAreCollected(t *testing.T) {
	l, err := NewLayout(testDesc(testLayers, testBlocks, 8))
	must(t, err)
	p, err := NewPlan([]*Layout{l}, []*Layout{l}, 0, 0)
	must(t, err)
	stale := [2]any{&Layout{handle: l.handle}, &Plan{handle: p.handle}}
	runtime.KeepAlive(l)
	runtime.KeepAlive(p)
	l, p = nil, nil
	for deadline := patience(t); ; runtime.Gosched() {
		runtime.GC()
		_, noLayout := stale[0].(*Layout).JSON()
		_, noPlan := stale[1].(*Plan).Explain()
		if noLayout != nil && noPlan != nil {
			return
		}
		must(t, deadline.Err())
	}
}

func TestMemory(t *testing.T) {
	m, err := NewSharedMemory(4096)
	must(t, err)
	b := m.Bytes()
	if len(b) != 4096 || b[4095] != 0 {
		t.Fatal(len(b))
	}
	must(t, m.Close())
	must(t, m.Close())
	if m.Bytes() != nil {
		t.Fatal("bytes after Close")
	}
	_, err = NewSharedMemory(0)
	mustBe(t, err, ErrInvalidArgument)
	_, err = NewSharedMemory(-1)
	mustBe(t, err, ErrInvalidArgument)
	agent, err := NewAgent(newLayoutOf(t, testDesc(testLayers, testBlocks, 8)), Config{Instance: "a"})
	must(t, err)
	defer func() { must(t, agent.Close()) }()
	mustBe(t, agent.Register(0, m), ErrInvalidArgument)
	mustBe(t, agent.Register(0, nil), ErrNullPointer)
	must(t, agent.Close())
	must(t, agent.Close())
}

func TestVersion(t *testing.T) {
	if strings.Count(Version(), ".") != 2 {
		t.Fatal(Version())
	}
}
