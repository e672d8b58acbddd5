//! What must be refused, how, and in which words.

mod common;

use common::case::instance;
use common::models;
use kvlink::error::{Error, Status};
use kvlink::layout::form::Order;
use kvlink::layout::model::{Model, Placement};
use kvlink::layout::{
    Axis, BlockList, ContextParallel, DType, Element, Extent, Group, GroupKind, Layout, LayoutDesc, Matching, NO_BLOCK,
    Part, Plan, Reach, Region, Request, Scratch, Span, Tensor, Tile, Verdict, compile, layout_from_json,
    layout_to_json,
};
use std::slice::from_ref;
use std::sync::Arc;

fn group(kind: GroupKind, block_tokens: u32, num_blocks: u32) -> Group {
    Group { kind, block_tokens, num_blocks, reach: Reach::Full, context: ContextParallel::default() }
}

fn tensor(layer: u32, role: &str, group: u32, len: u64, part: Part) -> Tensor {
    let axes = vec![Axis { name: "content".into(), extent: len, matching: Matching::Exact }];
    Tensor { layer, role: role.into(), group, element: Element::of(DType::Bf16), axes, parts: vec![part] }
}

fn part(offset: u64, block_stride: u64, token_stride: u64, len: u64) -> Part {
    let extents = vec![Extent { begin: 0, len, stride: 2 }];
    Part { region: 0, offset, block_stride, token_stride, tile: None, extents }
}

/// One region of 1,024 bytes; 8 blocks of 4 tokens of 16 elements.
fn desc() -> LayoutDesc {
    LayoutDesc {
        model: "m".into(),
        regions: vec![Region { len: 1024 }],
        groups: vec![group(GroupKind::Paged, 4, 8)],
        tensors: vec![tensor(0, "kv", 0, 16, part(0, 128, 32, 16))],
    }
}

fn assert_error(e: Error, status: Status, words: &[&str]) {
    assert_eq!(e.status(), status, "{e}");
    for w in words {
        assert!(e.message().contains(w), "{w:?} is missing in {:?}", e.message());
    }
}

/// The changed description is refused with this status and these words.
fn refused(change: impl FnOnce(&mut LayoutDesc), status: Status, words: &[&str]) {
    let mut d = desc();
    change(&mut d);
    assert_error(Layout::new(d).expect_err("accepted"), status, words);
}

fn invalid(words: &[&str], change: impl FnOnce(&mut LayoutDesc)) {
    refused(change, Status::InvalidLayout, words);
}

#[test]
fn the_unchanged_description_is_valid() {
    Layout::new(desc()).unwrap();
}

#[test]
fn groups() {
    invalid(&["group 0", "block_tokens 0", "1..="], |d| d.groups[0].block_tokens = 0);
    invalid(&["group 0", "num_blocks 0", "1..="], |d| d.groups[0].num_blocks = 0);
    invalid(&["group 0", "num_blocks 4294967295", "1..=1073741824"], |d| d.groups[0].num_blocks = u32::MAX);
    invalid(&["group 0", "slots", "block_tokens 4", "must be 1"], |d| d.groups[0].kind = GroupKind::Slots);
    invalid(&["group 0", "window or chunk of 0"], |d| d.groups[0].reach = Reach::Window(0));
    invalid(&["group 0", "window or chunk of 0"], |d| d.groups[0].reach = Reach::Chunk(0));
    invalid(&["group 0", "rank 2 of 2", "interleave 1"], |d| {
        d.groups[0].context = ContextParallel { size: 2, rank: 2, interleave: 1 }
    });
    invalid(&["group 0", "interleave 0"], |d| {
        d.groups[0].context = ContextParallel { size: 1, rank: 0, interleave: 0 }
    });
    invalid(&["group 0", "context parallel size 2", "not paged"], |d| {
        d.groups[0].kind = GroupKind::Ring;
        d.groups[0].context = ContextParallel { size: 2, rank: 0, interleave: 1 }
    });
}

#[test]
fn tensors() {
    invalid(&["layer 0 kv", "described twice"], |d| {
        let again = d.tensors[0].clone();
        d.tensors.push(again);
    });
    invalid(&["layer 0", "empty role"], |d| d.tensors[0].role.clear());
    invalid(&["layer 0 kv", "element of 0 bytes"], |d| d.tensors[0].element = Element::opaque(0));
    invalid(&["layer 0 kv", "element of 4 bytes", "bf16", "2"], |d| d.tensors[0].element.bytes = 4);
    invalid(&["layer 0 kv", "group 3 of 1 groups"], |d| d.tensors[0].group = 3);
    invalid(&["layer 0 kv", "axis content", "extent 0"], |d| d.tensors[0].axes[0].extent = 0);
    invalid(&["layer 0 kv", "axis 0", "\"\""], |d| d.tensors[0].axes[0].name.clear());
    invalid(&["layer 0 kv", "no parts"], |d| d.tensors[0].parts.clear());
    invalid(&["layer 0 kv", "parts 0 and 1 hold the same elements"], |d| {
        d.regions.push(Region { len: 1024 });
        let twin = Part { region: 1, ..d.tensors[0].parts[0].clone() };
        d.tensors[0].parts.push(twin);
    });
}

#[test]
fn parts() {
    invalid(&["part 0", "region 1 of 1 regions"], |d| d.tensors[0].parts[0].region = 1);
    invalid(&["part 0", "0 extents for 1 axes"], |d| d.tensors[0].parts[0].extents.clear());
    invalid(&["axis content", "[8, 24)", "extent 16"], |d| d.tensors[0].parts[0].extents[0].begin = 8);
    invalid(&["axis content", "extent 16"], |d| d.tensors[0].parts[0].extents[0].begin = u64::MAX);
    invalid(&["tile of 3 tokens", "block of 4"], |d| d.tensors[0].parts[0].tile = Some(Tile { tokens: 3, stride: 96 }));
    invalid(&["tile of 0 tokens", "block of 4"], |d| d.tensors[0].parts[0].tile = Some(Tile { tokens: 0, stride: 96 }));
    invalid(&["ends at byte 1026", "region 0", "1024 bytes"], |d| d.tensors[0].parts[0].offset = 2);
    invalid(&["ends at byte 1152", "1024 bytes"], |d| d.groups[0].num_blocks = 9);
    invalid(&["layer 0 kv", "overflows 64 bits"], |d| d.tensors[0].parts[0].offset = u64::MAX - 5);
    invalid(&["layer 0 kv", "overflows 64 bits"], |d| d.tensors[0].parts[0].block_stride = u64::MAX / 4);
    invalid(&["layer 0 kv", "strides overlap"], |d| d.tensors[0].parts[0].token_stride = 30);
    invalid(&["layer 0 kv", "strides overlap"], |d| d.tensors[0].parts[0].block_stride = 64);
    invalid(&["layer 0 kv", "strides overlap"], |d| d.tensors[0].parts[0].extents[0].stride = 0);
}

#[test]
fn tensors_of_one_group_must_not_share_bytes() {
    let half = |d: &mut LayoutDesc| {
        d.tensors[0] = tensor(0, "kv", 0, 8, part(0, 128, 32, 8));
        d.tensors.push(tensor(1, "kv", 0, 8, part(16, 128, 32, 8)));
    };
    let mut fits = desc();
    half(&mut fits);
    Layout::new(fits).unwrap();
    invalid(&["layer 0 kv and layer 1 kv", "share bytes"], |d| {
        half(d);
        d.tensors[1].parts[0].offset = 14;
    });
}

#[test]
fn layers_that_interleave_within_blocks_must_not_share_bytes() {
    let layers = |d: &mut LayoutDesc, offsets: [u64; 4]| {
        let part = |offset| part(offset, 128, 8, 4);
        d.regions[0].len = 8 * 128 + 64;
        d.tensors = (0..).zip(offsets).map(|(layer, offset)| tensor(layer, "kv", 0, 4, part(offset))).collect();
    };
    for offsets in [[0, 32, 64, 96], [96, 64, 32, 0], [32, 64, 96, 128]] {
        let mut fits = desc();
        layers(&mut fits, offsets);
        Layout::new(fits).unwrap();
    }
    for (offsets, words) in [
        ([0, 32, 64, 94], "layer 2 kv and layer 3 kv share bytes of one group"),
        ([0, 32, 32, 96], "layer 1 kv and layer 2 kv share bytes of one group"),
        (
            [0, 32, 64, 130],
            "layer 0 kv and layer 3 kv share bytes of one group; layer 1 kv and layer 3 kv share bytes of one group",
        ),
    ] {
        let mut d = desc();
        layers(&mut d, offsets);
        let e = Layout::new(d).expect_err("accepted");
        assert_eq!((e.status(), e.message()), (Status::InvalidLayout, words));
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    invalid(&["block_tokens 0", "group 3 of 1", "described twice", "empty role"], |d| {
        let again = d.tensors[0].clone();
        d.tensors.push(again);
        d.groups[0].block_tokens = 0;
        d.tensors[0].group = 3;
        d.tensors.push(Tensor { role: String::new(), ..d.tensors[0].clone() });
    });
}

#[test]
fn limits() {
    let limit = |words: &[&str], change: &dyn Fn(&mut LayoutDesc)| refused(change, Status::Limit, words);
    limit(&["4097 regions", "4096"], &|d| d.regions = vec![Region { len: 1 }; 4097]);
    limit(&["257 groups", "256"], &|d| d.groups = vec![group(GroupKind::Paged, 4, 8); 257]);
    limit(&["65 parts in layer 0 kv", "64"], &|d| d.tensors[0].parts = vec![part(0, 128, 32, 16); 65]);
    limit(&["5 axes in layer 0 kv", "4"], &|d| d.tensors[0].axes = vec![d.tensors[0].axes[0].clone(); 5]);
    limit(&["129 bytes", "role", "128"], &|d| d.tensors[0].role = "r".repeat(129));
    limit(&["129 bytes", "model", "128"], &|d| d.model = "r".repeat(129));
    limit(&["129 bytes", "axis name", "128"], &|d| d.tensors[0].axes[0].name = "r".repeat(129));
    limit(&["16385 tensors", "16384"], &|d| d.tensors = vec![d.tensors[0].clone(); 16_385]);
}

// Verdicts.

fn verdict(change: impl FnOnce(&mut LayoutDesc)) -> Verdict {
    let ours = Arc::new(Layout::new(desc()).unwrap());
    let mut d = desc();
    change(&mut d);
    let theirs = Arc::new(Layout::new(d).unwrap());
    compile(&[theirs], &[ours], 0).expect_err("compiled")
}

#[test]
fn a_verdict_names_tensor_field_and_both_values() {
    let one = |change: &dyn Fn(&mut LayoutDesc), text: &str| {
        let all: Vec<String> = verdict(change).findings.iter().map(|f| f.to_string()).collect();
        assert!(all.iter().any(|f| f == text), "{text:?} is not in {all:?}");
    };
    one(&|d| d.model = "other".into(), "model: name destination m, source other");
    one(&|d| d.tensors[0].element = Element::of(DType::F16), "layer 0 kv: dtype destination bf16, source f16");
    one(&|d| d.tensors[0].layer = 1, "layer 0 kv: presence destination present, source absent on every rank");
    one(&|d| d.tensors[0].axes[0].extent = 32, "layer 0 kv: axis content extent destination 16, source 32");
    one(&|d| d.tensors[0].axes[0].name = "channel".into(), "layer 0 kv: axis name destination content, source channel");
    one(&|d| d.groups[0].reach = Reach::Window(8), "layer 0 kv: reach destination Full, source Window(8)");
    one(
        &|d| {
            d.groups[0] = group(GroupKind::Slots, 1, 8);
        },
        "layer 0 kv: indexed by destination tokens, source state slots",
    );
    one(
        &|d| {
            d.tensors[0].parts[0].extents[0].len = 8;
        },
        "layer 0 kv: coverage destination content [8, 16), source held by no source rank",
    );
}

#[test]
fn opaque_records_of_another_size_are_a_verdict() {
    let side = |bytes| {
        let mut d = desc();
        d.tensors[0] = tensor(0, "fp8_ds_mla", 0, 1, part(0, 128, 32, 1));
        d.tensors[0].element = Element::opaque(bytes);
        Arc::new(Layout::new(d).unwrap())
    };
    let v = compile(&[side(20)], &[side(24)], 0).unwrap_err();
    let text = "layer 0 fp8_ds_mla: dtype destination opaque record of 24 B, source opaque record of 20 B";
    assert_eq!(v.to_string(), text);
}

#[test]
fn a_verdict_tells_everything_at_once() {
    let v = verdict(|d| {
        d.model = "other".into();
        d.tensors[0].element = Element::of(DType::F16);
        d.tensors[0].axes[0].extent = 32;
        d.groups[0].reach = Reach::Chunk(8);
    });
    let fields: Vec<&str> = v.findings.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(fields, ["name", "dtype", "axis content extent", "reach"]);
    assert_eq!((v.findings[2].local.as_str(), v.findings[2].remote.as_str()), ("16", "32"));
}

#[test]
fn a_rank_or_an_instance_that_cannot_be_is_a_verdict() {
    let ours = Arc::new(Layout::new(desc()).unwrap());
    let v = compile(from_ref(&ours), from_ref(&ours), 3).unwrap_err();
    assert_eq!(v.to_string(), "destination: rank destination 3, source 1 ranks");
    let many = vec![ours.clone(); 1_025];
    let v = compile(&many, from_ref(&ours), 0).unwrap_err();
    assert!(v.to_string().contains("1025") && v.to_string().contains("1024"), "{v}");
    let v = compile(&[], &[ours], 0).unwrap_err();
    assert_eq!(v.to_string(), "layer 0 kv: presence destination present, source absent on every rank");
}

#[test]
fn one_layer_that_is_missing_is_named() {
    let model = models::named("Llama-3.1-8B");
    let side = instance(&model, &Placement { pp: 4, ..Placement::default() });
    let whole = instance(&model, &Placement::default());
    let v = compile(&side[..3], &whole, 0).unwrap_err();
    assert_eq!(v.findings.len(), 8);
    assert_eq!(v.findings[0].subject, "layer 24 kv");
}

// Requests.

/// A paged, a ring and a slots group.
fn three() -> Arc<Layout> {
    let ring = Group { reach: Reach::Window(8), ..group(GroupKind::Ring, 4, 8) };
    Arc::new(
        Layout::new(LayoutDesc {
            model: String::new(),
            regions: vec![Region { len: 4096 }],
            groups: vec![group(GroupKind::Paged, 4, 8), ring, group(GroupKind::Slots, 1, 4)],
            tensors: vec![
                tensor(0, "kv", 0, 16, part(0, 128, 32, 16)),
                tensor(0, "swa", 1, 16, part(1024, 128, 32, 16)),
                tensor(0, "state", 2, 16, part(2048, 32, 0, 16)),
            ],
        })
        .unwrap(),
    )
}

struct Lists<'a>([&'a [u32]; 3]);

impl<'a> Lists<'a> {
    fn borrow(&self) -> [BlockList<'a>; 3] {
        self.0.map(BlockList::new)
    }
}

const GOOD: Lists<'static> = Lists([&[0, 1, 2], &[3, 4], &[1]]);

fn plan(layout: &Arc<Layout>) -> Arc<Plan> {
    compile(from_ref(layout), from_ref(layout), 0).unwrap().plans.remove(0)
}

/// Expands `request`; a refusal leaves the output as it was, and the check says the same.
fn expand(plan: &Plan, request: &Request<'_>) -> Result<u64, Error> {
    let sentinel = Span { len: 77, ..Span::default() };
    let mut out = vec![sentinel];
    let result = plan.expand(request, &mut Scratch::default(), &mut out);
    assert_eq!(out[0], sentinel);
    assert!(result.is_ok() || out.len() == 1);
    let result = result.map(|s| s.bytes);
    assert_eq!(plan.check(request, &mut Scratch::default()).map(|s| s.bytes), result);
    result
}

#[track_caller]
fn bad_blocks(src: &Lists<'_>, dst: &Lists<'_>, words: &[&str]) {
    let plan = plan(&three());
    let (src, dst) = (src.borrow(), dst.borrow());
    let e = expand(&plan, &Request::whole(&src, &dst, 12)).expect_err("accepted");
    assert_error(e, Status::InvalidBlocks, words);
}

#[test]
fn block_lists() {
    let plan = plan(&three());
    let lists = GOOD.borrow();
    assert_eq!(expand(&plan, &Request::whole(&lists, &lists, 12)), Ok(12 * 32 + 8 * 32 + 32));

    let hole = NO_BLOCK;
    bad_blocks(&Lists([&[0, 8, 2], &[3, 4], &[1]]), &GOOD, &["group 0", "source", "id 8", "position 1", "8"]);
    bad_blocks(&GOOD, &Lists([&[0, 1, 2], &[3, 9], &[1]]), &["group 1", "destination", "id 9", "position 1"]);
    bad_blocks(&GOOD, &Lists([&[0, 1, 1], &[3, 4], &[1]]), &["group 0", "destination", "id 1", "twice"]);
    bad_blocks(&GOOD, &Lists([&[0, 1], &[3, 4], &[1]]), &["group 0", "2 destination blocks", "position 2"]);
    bad_blocks(&Lists([&[0, 1], &[3, 4], &[1]]), &GOOD, &["group 0", "2 source blocks", "position 2"]);
    bad_blocks(&Lists([&[0, hole, 2], &[3, 4], &[1]]), &GOOD, &["group 0", "source", "position 1"]);
    bad_blocks(&Lists([&[0, 1, 2], &[3], &[1]]), &GOOD, &["group 1", "source ring of 4 tokens", "8 tokens"]);
    bad_blocks(&GOOD, &Lists([&[0, 1, 2], &[], &[1]]), &["group 1", "destination ring of 0 tokens", "8 tokens"]);
    bad_blocks(&GOOD, &Lists([&[0, 1, 2], &[3, 4], &[1, 2]]), &["2 destination slots", "1 source slots"]);
    bad_blocks(&GOOD, &Lists([&[0, 1, 2], &[3, 4], &[hole]]), &["group 2", "destination", "hole", "position 0"]);
    bad_blocks(&Lists([&[0, 1, 2], &[3, 4], &[hole]]), &GOOD, &["group 2", "source", "hole", "position 0"]);
}

#[test]
fn holes_in_the_destination_and_lists_that_begin_late_are_no_errors() {
    let plan = plan(&three());
    let src = GOOD.borrow();
    let mut dst = GOOD.borrow();
    let ids = [NO_BLOCK, 5];
    dst[0] = BlockList { ids: &ids, first: 1 };
    assert_eq!(expand(&plan, &Request::whole(&src, &dst, 12)), Ok(4 * 32 + 8 * 32 + 32));
    let mut late = GOOD.borrow();
    late[0].first = 1;
    let e = expand(&plan, &Request::whole(&late, &src, 12)).unwrap_err();
    assert_error(e, Status::InvalidBlocks, &["group 0", "source", "position 0"]);
}

#[test]
fn numbers_of_lists_and_token_ranges() {
    let plan = plan(&three());
    let lists = GOOD.borrow();
    let whole = Request::whole(&lists, &lists, 12);
    let check =
        |r: Request<'_>, words: &[&str]| assert_error(expand(&plan, &r).unwrap_err(), Status::InvalidBlocks, words);
    check(Request { src: &lists[..2], ..whole.clone() }, &["2 source block lists", "3 groups"]);
    check(Request { dst: &lists[..1], ..whole.clone() }, &["1 destination block lists", "3 groups"]);
    #[allow(clippy::reversed_empty_ranges)]
    check(Request { tokens: 8..4, ..whole.clone() }, &["[8, 4)", "12"]);
    check(Request { tokens: 0..13, ..whole.clone() }, &["[0, 13)", "12"]);
    assert_eq!(expand(&plan, &Request { tokens: 4..4, slots: false, ..whole.clone() }), Ok(0));
    assert_eq!(expand(&plan, &Request { layers: 1..9, ..whole }), Ok(0));
}

#[test]
fn absurd_token_counts_end_at_once() {
    let plan = plan(&Arc::new(Layout::new(desc()).unwrap()));
    let ids = [1, 2];
    for first in [0, 1 << 40, u64::MAX - 1, u64::MAX] {
        let (src, dst) = ([BlockList { ids: &ids, first: 0 }], [BlockList { ids: &ids, first }]);
        for end in [1 << 20, 1 << 50, u64::MAX - 1, u64::MAX] {
            match expand(&plan, &Request::whole(&src, &dst, end)) {
                Ok(bytes) => assert!(bytes == 0 && first > 0),
                Err(e) => assert_eq!(e.status(), Status::InvalidBlocks),
            }
        }
    }
}

/// Slots of 96 bytes (a small part, then a large one) and kernel blocks of 32 bytes with ids of their own, in the same
/// bytes.
fn kernel_ids() -> Arc<Layout> {
    Arc::new(
        Layout::new(LayoutDesc {
            model: String::new(),
            regions: vec![Region { len: 960 }],
            groups: vec![group(GroupKind::Slots, 1, 10), group(GroupKind::Paged, 2, 30)],
            tensors: vec![
                tensor(0, "conv", 0, 4, part(0, 96, 0, 4)),
                tensor(0, "state", 0, 40, part(8, 96, 0, 40)),
                tensor(1, "mla", 1, 8, part(0, 32, 16, 8)),
            ],
        })
        .unwrap(),
    )
}

#[test]
fn pages_of_two_groups_must_not_lie_over_one_another() {
    let plan = plan(&kernel_ids());
    let ask = |slot: u32, blocks: &[u32]| {
        let slots = [slot];
        let lists = [BlockList::new(&slots), BlockList::new(blocks)];
        expand(&plan, &Request::whole(&lists, &lists, 4))
    };
    assert_eq!(ask(1, &[0, 6]), Ok(8 + 80 + 4 * 16));
    assert_eq!(ask(0, &[3, 5]), Ok(8 + 80 + 4 * 16));
    for block in 3..6 {
        let e = ask(1, &[0, block]).expect_err("over the state");
        let words = ["groups 0 and 1", "share", &format!("block {block} of group 1"), &format!("[{}, ", block * 32)];
        assert_error(e, Status::InvalidBlocks, &words);
    }
}

#[test]
fn pages_with_heads_outside_of_blocks_must_not_lie_over_one_another_either() {
    // Two heads, each with all blocks; two groups over the same bytes.
    let part = || Part {
        region: 0,
        offset: 0,
        block_stride: 16,
        token_stride: 4,
        tile: None,
        extents: vec![Extent { begin: 0, len: 2, stride: 128 }, Extent { begin: 0, len: 2, stride: 2 }],
    };
    let axis = |name: &str| Axis { name: name.into(), extent: 2, matching: Matching::Exact };
    let tensor = |layer| Tensor {
        layer,
        role: "kv".into(),
        group: layer,
        element: Element::of(DType::Bf16),
        axes: vec![axis("head"), axis("content")],
        parts: vec![part()],
    };
    let layout = Arc::new(
        Layout::new(LayoutDesc {
            model: String::new(),
            regions: vec![Region { len: 256 }],
            groups: vec![group(GroupKind::Paged, 4, 8); 2],
            tensors: vec![tensor(0), tensor(1)],
        })
        .unwrap(),
    );
    let plan = plan(&layout);
    let ask = |a: &[u32], b: &[u32]| {
        let lists = [BlockList::new(a), BlockList::new(b)];
        expand(&plan, &Request::whole(&lists, &lists, 8))
    };
    assert_eq!(ask(&[0, 1], &[2, 3]), Ok(2 * 64));
    assert_error(ask(&[0, 1], &[2, 1]).unwrap_err(), Status::InvalidBlocks, &["groups 0 and 1", "share", "block 1"]);
}

// Models and JSON.

#[test]
fn impossible_placements() {
    let model = models::named("Llama-3.1-8B");
    let check =
        |p: Placement, status: Status, words: &[&str]| assert_error(model.describe(&p).unwrap_err(), status, words);
    let p = Placement::default;
    check(Placement { tp: 0, ..p() }, Status::InvalidArgument, &["tp 0/0"]);
    check(Placement { tp: 2, tp_rank: 2, ..p() }, Status::InvalidArgument, &["tp 2/2"]);
    check(Placement { pp: 2, pp_rank: 2, ..p() }, Status::InvalidArgument, &["pp 2/2"]);
    check(Placement { tp: 4, dcp: 3, ..p() }, Status::InvalidArgument, &["dcp 3 of tp 4"]);
    check(Placement { interleave: 0, ..p() }, Status::InvalidArgument, &["interleave 0"]);
    check(Placement { tp: 2_000, ..p() }, Status::Limit, &["2000", "1024"]);
    check(Placement { kernel_tokens: 5, ..p() }, Status::InvalidLayout, &["kernel block of 5", "block of 16"]);
    let huge = Model { num_layers: 20, ..model.clone() };
    let e = huge.describe(&p()).unwrap_err();
    assert_error(e, Status::InvalidArgument, &["layer 20", "20 layers"]);
}

#[test]
fn storage_orders_are_permutations() {
    for bad in ["LBHN", "LBHNN", "LBHNCC", "lbhnc", ""] {
        let e = bad.parse::<Order>().unwrap_err();
        assert_error(e, Status::InvalidLayout, &[&format!("{bad:?}"), "LBHNC"]);
    }
}

#[test]
fn json() {
    let json = |text: &str| layout_from_json(text).unwrap_err();
    assert_error(json("{"), Status::InvalidLayout, &["JSON", "line 1"]);
    assert_error(json("[]"), Status::InvalidLayout, &["JSON"]);
    assert_error(json(r#"{"regions": [], "groups": []}"#), Status::InvalidLayout, &["tensors"]);

    let good = layout_to_json(&Layout::new(desc()).unwrap());
    assert_eq!(layout_from_json(&good).unwrap().desc(), &desc());
    for (from, to) in [
        ("\"tile\"", "\"tiles\""),
        ("\"reach\"", "\"window\""),
        ("\"interleave\"", "\"inter_leave\""),
        ("\"matching\"", "\"match\""),
        ("\"model\"", "\"modell\""),
        ("\"len\"", "\"length\""),
        ("\"dtype\"", "\"type\""),
    ] {
        assert!(good.contains(from));
        assert_error(json(&good.replacen(from, to, 1)), Status::InvalidLayout, &[to.trim_matches('"')]);
    }

    let model = serde_json::to_string(&models::named("Kimi-Linear")).unwrap();
    let both = |placement: &str| format!("{{\"geometry\": {model}, \"placement\": {placement}}}");
    let layout = layout_from_json(&both(r#"{"tp": 8, "pages": "shared", "block_tokens": 256}"#)).unwrap();
    assert_eq!(layout.find(3, "mla").unwrap().parts[0].block_stride, 294_912);
    assert_error(json(&both(r#"{"tq": 8}"#)), Status::InvalidLayout, &["tq"]);
    assert_error(json(&both(r#"{"order": "LBHN"}"#)), Status::InvalidLayout, &["LBHN", "permutation"]);
    assert_error(json(&both("{}").replacen("num_layers", "layers", 1)), Status::InvalidLayout, &["layers"]);
}

#[test]
fn the_examples_of_the_documentation_are_valid() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/layout.md")).unwrap();
    let examples: Vec<&str> = text.split("```json\n").skip(1).filter_map(|t| t.split("```").next()).collect();
    assert_eq!(examples.len(), 2);
    for e in examples {
        layout_from_json(e).unwrap_or_else(|e| panic!("{e}"));
    }
}
