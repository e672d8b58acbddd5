package kvlink

/*
#include "shim.h"
*/
import "C"

func flag(b bool) C.uint32_t {
	if b {
		return 1
	}
	return 0
}

func (p *pins) layout(d *LayoutDesc) *C.kvlink_layout_desc_t {
	return &C.kvlink_layout_desc_t{
		struct_size:   C.sizeof_kvlink_layout_desc_t,
		model:         p.text("model", d.Model),
		region_bytes:  p.u64(d.RegionBytes),
		num_regions:   C.size_t(len(d.RegionBytes)),
		groups:        convert(p, d.Groups, (*Group).c),
		num_groups:    C.size_t(len(d.Groups)),
		attention:     convert(p, d.Attention, p.attention),
		num_attention: C.size_t(len(d.Attention)),
		records:       convert(p, d.Records, p.record),
		num_records:   C.size_t(len(d.Records)),
		states:        convert(p, d.States, p.state),
		num_states:    C.size_t(len(d.States)),
		tensors:       convert(p, d.Tensors, p.tensor),
		num_tensors:   C.size_t(len(d.Tensors)),
	}
}

func (g *Group) c() C.kvlink_group_t {
	return C.kvlink_group_t{
		kind:               C.uint32_t(g.Kind),
		block_tokens:       C.uint32_t(g.BlockTokens),
		num_blocks:         C.uint32_t(g.NumBlocks),
		reach:              C.uint32_t(g.Reach),
		reach_tokens:       C.uint64_t(g.ReachTokens),
		context_size:       C.uint32_t(g.ContextSize),
		context_rank:       C.uint32_t(g.ContextRank),
		context_interleave: C.uint32_t(g.ContextInterleave),
	}
}

func groupOf(c *C.kvlink_group_t) Group {
	return Group{
		Kind:              GroupKind(c.kind),
		BlockTokens:       uint32(c.block_tokens),
		NumBlocks:         uint32(c.num_blocks),
		Reach:             Reach(c.reach),
		ReachTokens:       uint64(c.reach_tokens),
		ContextSize:       uint32(c.context_size),
		ContextRank:       uint32(c.context_rank),
		ContextInterleave: uint32(c.context_interleave),
	}
}

func (p *pins) attention(a *Attention) C.kvlink_attention_t {
	return C.kvlink_attention_t{
		layers:        p.u32(a.Layers),
		num_layers:    C.size_t(len(a.Layers)),
		role:          p.text("role", a.Role),
		order:         p.text("order", a.Order),
		group:         C.uint32_t(a.Group),
		region:        C.uint32_t(a.Region),
		offset:        C.uint64_t(a.Offset),
		block_stride:  C.uint64_t(a.BlockStride),
		layer_stride:  C.uint64_t(a.LayerStride),
		heads:         C.uint64_t(a.Heads),
		first_head:    C.uint64_t(a.FirstHead),
		num_heads:     C.uint64_t(a.NumHeads),
		key_dim:       C.uint64_t(a.KeyDim),
		value_dim:     C.uint64_t(a.ValueDim),
		planes:        flag(a.Planes),
		value_region:  C.uint32_t(a.ValueRegion),
		value_offset:  C.uint64_t(a.ValueOffset),
		kernel_tokens: C.uint32_t(a.KernelTokens),
		dtype:         C.uint32_t(a.DType),
	}
}

func (p *pins) record(r *Record) C.kvlink_record_t {
	return C.kvlink_record_t{
		layers:        p.u32(r.Layers),
		num_layers:    C.size_t(len(r.Layers)),
		role:          p.text("role", r.Role),
		group:         C.uint32_t(r.Group),
		region:        C.uint32_t(r.Region),
		offset:        C.uint64_t(r.Offset),
		block_stride:  C.uint64_t(r.BlockStride),
		layer_stride:  C.uint64_t(r.LayerStride),
		token_stride:  C.uint64_t(r.TokenStride),
		elements:      C.uint64_t(r.Elements),
		dtype:         C.uint32_t(r.DType),
		element_bytes: C.uint32_t(r.ElementBytes),
	}
}

func (s *Section) c() C.kvlink_section_t {
	return C.kvlink_section_t{
		units: C.uint64_t(s.Units),
		width: C.uint64_t(s.Width),
		first: C.uint64_t(s.First),
		count: C.uint64_t(s.Count),
	}
}

func (p *pins) state(s *State) C.kvlink_state_t {
	return C.kvlink_state_t{
		layers:            p.u32(s.Layers),
		num_layers:        C.size_t(len(s.Layers)),
		group:             C.uint32_t(s.Group),
		region:            C.uint32_t(s.Region),
		conv_offset:       C.uint64_t(s.ConvOffset),
		state_offset:      C.uint64_t(s.StateOffset),
		slot_stride:       C.uint64_t(s.SlotStride),
		layer_stride:      C.uint64_t(s.LayerStride),
		conv:              convert(p, s.Conv, (*Section).c),
		num_conv:          C.size_t(len(s.Conv)),
		conv_rows:         C.uint64_t(s.ConvRows),
		conv_rows_outside: flag(s.ConvRowsOutside),
		conv_dtype:        C.uint32_t(s.ConvDType),
		state:             s.State.c(),
		state_dtype:       C.uint32_t(s.StateDType),
	}
}

func (p *pins) tensor(t *Tensor) C.kvlink_tensor_t {
	return C.kvlink_tensor_t{
		layer:         C.uint32_t(t.Layer),
		group:         C.uint32_t(t.Group),
		dtype:         C.uint32_t(t.DType),
		element_bytes: C.uint32_t(t.ElementBytes),
		role:          p.text("role", t.Role),
		axes:          convert(p, t.Axes, p.axis),
		num_axes:      C.size_t(len(t.Axes)),
		parts: convert(p, t.Parts, func(part *Part) C.kvlink_part_t {
			if len(part.Extents) != len(t.Axes) && p.err == nil {
				p.err = invalid(p.call, "layer %d %s: a part has %d extents, the tensor %d axes", t.Layer, t.Role,
					len(part.Extents), len(t.Axes))
			}
			return p.part(part)
		}),
		num_parts: C.size_t(len(t.Parts)),
	}
}

func (p *pins) axis(a *Axis) C.kvlink_axis_t {
	return C.kvlink_axis_t{name: p.text("axis", a.Name), extent: C.uint64_t(a.Extent), common: flag(a.Common)}
}

func (p *pins) part(t *Part) C.kvlink_part_t {
	return C.kvlink_part_t{
		region:       C.uint32_t(t.Region),
		tile_tokens:  C.uint32_t(t.TileTokens),
		offset:       C.uint64_t(t.Offset),
		block_stride: C.uint64_t(t.BlockStride),
		token_stride: C.uint64_t(t.TokenStride),
		tile_stride:  C.uint64_t(t.TileStride),
		extents: convert(p, t.Extents, func(e *Extent) C.kvlink_extent_t {
			return C.kvlink_extent_t{begin: C.uint64_t(e.Begin), len: C.uint64_t(e.Len), stride: C.uint64_t(e.Stride)}
		}),
	}
}
