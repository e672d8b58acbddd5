"""Layouts described from arrays say what the same layouts say in numbers or JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import kvlink
from kvlink import DType, Extent, Group, InvalidLayout, Layout, Plan, Section

BLOCKS, TOKENS, HEADS, DIM = 8, 16, 4, 32


def numbers(order: str, **more: Any) -> Layout:
    settings: dict[str, Any] = {
        "layers": [3, 5], "heads": 8, "first_head": 4, "num_heads": HEADS,
        "key_dim": DIM, "value_dim": DIM, "dtype": DType.F16, "order": order,
    }  # fmt: skip
    piece = kvlink.Attention(**{**settings, **more})
    nbytes = 2 * BLOCKS * HEADS * TOKENS * 2 * DIM * 2
    return Layout.from_pieces([piece], groups=[group()], regions=[nbytes])


def group(**more: Any) -> Group:
    return Group(**{"num_blocks": BLOCKS, "block_tokens": TOKENS, **more})


def array(axes: str, **extents: int) -> Any:
    sizes = {"L": 2, "B": BLOCKS, "N": TOKENS, "H": HEADS, "C": 2 * DIM, **extents}
    return np.zeros([sizes[letter] for letter in axes], np.float16)


def described(a: Any, axes: str, **more: Any) -> Layout:
    settings = {"layers": [3, 5], "heads": 8, "first_head": 4, **more}
    return Layout.from_pieces([kvlink.attention(a, axes, **settings)], groups=[group()])


def same(one: Layout, other: Layout) -> bool:
    return bool(json.loads(one.to_json()) == json.loads(other.to_json()))


@pytest.mark.parametrize("order", ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC", "CNHBL"])
def test_an_array_of_any_order_is_the_layout_of_that_order(order: str) -> None:
    layout = described(array(order), order)
    assert same(layout, numbers(order))
    assert not same(layout, numbers("LNBHC"))


def test_a_transposed_view_is_described_by_its_strides() -> None:
    view = array("LBHNC").transpose(1, 3, 0, 2, 4)
    assert same(described(view, "BNLHC"), numbers("LBHNC"))


def test_axes_of_one_element_may_have_any_stride() -> None:
    one = array("LBHNC", L=1)
    turned = np.lib.stride_tricks.as_strided(one, strides=(-(1 << 20), *one.strides[1:]))
    assert same(described(turned, "LBHNC", layers=[3]), described(one[0], "BHNC", layers=[3]))


def test_json_says_the_same() -> None:
    geometry = {
        "name": "m",
        "num_layers": 2,
        "caches": [{"layers": [0, 1], "cache": {"kind": "attention", "heads": 8, "dims": [DIM, DIM], "dtype": "f16"}}],
    }
    placement = {"tp": 2, "tp_rank": 1, "block_tokens": TOKENS, "num_blocks": BLOCKS, "order": "LBNHC"}
    layout = Layout.from_json({"geometry": geometry, "placement": placement})
    from_array = Layout.from_pieces(
        [kvlink.attention(array("LBNHC"), "LBNHC", layers=[0, 1], heads=8, first_head=4)], groups=[group()], model="m"
    )
    assert same(layout, from_array)
    assert same(Layout.from_json(layout.to_json()), layout)
    assert layout.groups == (group(),)
    assert layout.regions == (2 * BLOCKS * HEADS * TOKENS * 2 * DIM * 2,)


def test_numbers_of_numpy_are_numbers() -> None:
    layout = numbers("LBHNC", layers=np.array([3, 5]), heads=np.int64(8), num_heads=np.uint8(HEADS))
    assert same(layout, numbers("LBHNC"))
    plan = Plan.compile([layout], [layout])
    assert plan is not None
    assert len(plan.expand([[0]], [[1]], np.int64(16).item(), token_end=16)) == 2
    assert list(plan.expand([[0]], [[1]], np.int32(16))) == list(plan.expand([[0]], [[1]], 16))  # type: ignore[arg-type]


def test_planes_of_one_array_and_of_two() -> None:
    both = np.zeros([2, 2, BLOCKS, TOKENS, HEADS, DIM], np.float16)
    plane = both[0].nbytes
    piece = kvlink.Attention(
        layers=[3, 5], heads=8, first_head=4, num_heads=HEADS, key_dim=DIM, value_dim=DIM, dtype=DType.F16,
        order="LBNHC", planes=True, value_offset=plane,
    )  # fmt: skip
    expected = Layout.from_pieces([piece], groups=[group()], regions=[2 * plane])
    assert same(described(both, "KLBNHC"), expected)
    assert same(described(both[0], "LBNHC", values=both[1]), expected)


def test_kernel_blocks_inside_a_block() -> None:
    tiled = np.zeros([2, BLOCKS, 4, HEADS, TOKENS // 4, 2 * DIM], np.float16)
    assert same(described(tiled, "LBTHNC"), numbers("LBHNC", kernel_tokens=TOKENS // 4))


def test_records_and_opaque_records() -> None:
    cache = np.zeros([2, BLOCKS, TOKENS, 576], np.float16)
    by_array = kvlink.record(cache, "LBNC", layers=[0, 1], role="mla")
    by_number = kvlink.Record(layers=[0, 1], role="mla", elements=576, dtype=DType.F16)
    assert same(
        Layout.from_pieces([by_array], groups=[group()]),
        Layout.from_pieces([by_number], groups=[group()], regions=[cache.nbytes]),
    )
    rows = np.zeros([BLOCKS, TOKENS, 656], np.uint8)
    opaque = kvlink.record(rows, "BNC", layers=[0], role="fp8_ds_mla", dtype=DType.OPAQUE)
    number = kvlink.Record(layers=[0], role="fp8_ds_mla", element_bytes=656, dtype=DType.OPAQUE)
    assert same(
        Layout.from_pieces([opaque], groups=[group()]),
        Layout.from_pieces([number], groups=[group()], regions=[rows.nbytes]),
    )


def test_states_of_one_allocation() -> None:
    conv_bytes, state_bytes, slots = 3 * 4 * 16 * 3 * 2, 4 * 16 * 16 * 4, 4
    page = np.zeros([2, slots, conv_bytes + state_bytes], np.uint8)
    conv = page[:, :, :conv_bytes].view(np.float16).reshape(2, slots, 3 * 4 * 16, 3)
    state = page[:, :, conv_bytes:].view(np.float32).reshape(2, slots, 4, 16, 16)
    assert np.shares_memory(conv, page)
    assert np.shares_memory(state, page)
    sections = [Section(units=8, width=16, first=4, count=4)] * 3
    slots_group = Group(kind=kvlink.GroupKind.SLOTS, num_blocks=slots)
    by_array = Layout.from_pieces(
        [
            kvlink.convolution(conv, "LBDR", layers=[0, 2], sections=sections),
            kvlink.state(state, "LBHCC", layers=[0, 2], heads=8, first_head=4),
        ],
        groups=[slots_group],
    )
    piece = kvlink.State(
        layers=[0, 2], group=0, slot_stride=conv_bytes + state_bytes, layer_stride=slots * (conv_bytes + state_bytes),
        conv=sections, conv_rows=3, conv_dtype=DType.F16, state=Section(8, 256, 4, 4), state_offset=conv_bytes,
        state_dtype=DType.F32,
    )  # fmt: skip
    assert len(by_array.regions) == 1, "views of one allocation are one region"
    expected = json.loads(Layout.from_pieces([piece], groups=[slots_group], regions=[page.nbytes]).to_json())
    found = json.loads(by_array.to_json())

    def by_name(layout: Any) -> Any:
        return sorted(layout["tensors"], key=lambda t: (t["layer"], t["role"]))

    assert by_name(found) == by_name(expected)


def test_separate_arrays_are_separate_regions_in_order_of_use() -> None:
    keys, values = np.zeros([2, BLOCKS, TOKENS, HEADS, DIM], np.float16), np.zeros([2, 8, 16, 4, DIM], np.float16)
    layout = described(values, "LBNHC", values=keys)
    assert [m.address for m in layout.memory] == [values.ctypes.data, keys.ctypes.data]


def test_regions_that_are_given_are_used_as_they_are() -> None:
    memory = kvlink.shared_memory(1 << 20)
    view = np.frombuffer(memory, np.float16)[4096 : 4096 + array("LBHNC").size].reshape(array("LBHNC").shape)
    pieces = kvlink.attention(view, "LBHNC", layers=[3, 5], heads=8, first_head=4)
    layout = Layout.from_pieces([pieces], groups=[group()], regions=[memory])
    assert layout.regions == (1 << 20,)
    assert json.loads(layout.to_json())["tensors"][0]["parts"][0]["offset"] == 8192
    with pytest.raises(InvalidLayout, match="lies in none of the regions"):
        Layout.from_pieces([pieces], groups=[group()], regions=[bytearray(1 << 20)])


@pytest.mark.parametrize(
    ("axes", "make", "more", "message"),
    [
        ("LBHN", lambda: array("LBHNC"), {}, "name 4 dimensions, the array has 5"),
        ("LBHNX", lambda: array("LBHNC"), {}, "'X' is none of"),
        ("LBHCC", lambda: array("LBHNC"), {}, "lack 'N'"),
        ("LBHNC", lambda: array("LBHNC")[:, ::-1], {}, "negative stride"),
        ("LBHNC", lambda: array("LBHNC", B=6), {}, "the array has 6 blocks, group 0 has 8"),
        ("LBHNC", lambda: array("LBHNC", N=8), {}, "the array has 8 tokens per block, group 0 has 16"),
        ("LBHNC", lambda: array("LBHNC", L=3), {}, "has 3 elements, layers has 2"),
        ("LBHNC", lambda: array("LBHNC"), {"first_head": 6}, "heads 6..10 of a model with 8"),
        ("LBHNC", lambda: array("LBHNC"), {"group": 1}, "group 1 of 1"),
        ("LBHNC", lambda: array("LBHNC"), {"dtype": DType.F32}, "has 4 bytes, the array's float16 has 2"),
        ("LBHNC", lambda: array("LBHNC").astype(np.uint16), {}, "dtype uint16 has no kvlink type"),
        ("LBHNC", lambda: array("LBHNC").astype(">f2"), {}, "big-endian"),
        ("LBHNC", lambda: array("LBHNC", C=0), {}, "is empty"),
        ("LBHNCC", lambda: array("LBHNC")[..., None][..., [0, 0]].swapaxes(4, 5), {}, "are not one axis"),
        ("LBHNC", lambda: np.broadcast_to(array("LBHNC", H=1), (2, 8, 4, 16, 64)), {}, "strides overlap"),
    ],
)
def test_what_cannot_be_described_is_refused_with_the_reason(
    axes: str, make: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidLayout, match=message):
        described(make(), axes, **more)


def test_numbers_that_do_not_fit_are_refused_and_not_cut() -> None:
    with pytest.raises(InvalidLayout, match=r"groups\[0\]\.num_blocks is 4294967296"):
        Layout.from_pieces([], groups=[group(num_blocks=1 << 32)], regions=[64])
    with pytest.raises(InvalidLayout, match=r"attention\[0\]\.layers\[1\] is -1"):
        numbers("LBHNC", layers=[0, -1])
    axes = [kvlink.Axis("head", 1), kvlink.Axis("content", 4)]
    part = kvlink.Part(extents=[Extent(0, 1, 8)], block_stride=8)
    tensor = kvlink.Tensor(layer=0, role="kv", dtype=DType.F16, axes=axes, parts=[part])
    with pytest.raises(InvalidLayout, match="1 extents for 2 axes"):
        Layout.from_pieces([tensor], groups=[group()], regions=[64])


def test_the_library_s_own_refusal_lists_all_contradictions() -> None:
    with pytest.raises(InvalidLayout, match="ends at byte 147456 of region 0, which has 64 bytes") as caught:
        Layout.from_pieces(
            [kvlink.Record(layers=[0], role="mla", elements=576, dtype=DType.F16)], groups=[group()], regions=[64]
        )
    assert caught.value.status == kvlink.Status.INVALID_LAYOUT
    assert str(caught.value).count("invalid layout") == 1


def test_other_arrays_than_numpy_s() -> None:
    plain = array("LBHNC")

    class Interface:
        __array_interface__ = plain.__array_interface__

    class Capsule:
        def __dlpack__(self) -> Any:
            return plain.__dlpack__()

    for other in (Interface(), Capsule(), memoryview(plain)):
        settings = {"dtype": DType.F16} if isinstance(other, memoryview) else {}
        assert same(described(other, "LBHNC", **settings), numbers("LBHNC")), type(other)
    with pytest.raises(kvlink.InvalidArgument, match="object is neither an array"):
        described(object(), "LBHNC")
    with pytest.raises(kvlink.InvalidArgument, match="read-only"):
        described(b"abcd", "C")


def test_names_of_types_beyond_numpy_s() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name, dtype in (("bfloat16", "bf16"), ("float8_e4m3fn", "f8_e4m3"), ("float8_e5m2", "f8_e5m2")):
        cache = array("LBHNC").astype(getattr(ml_dtypes, name))
        tensors = json.loads(described(cache, "LBHNC").to_json())["tensors"]
        assert tensors[0]["element"] == {"dtype": dtype, "bytes": cache.itemsize}
    with pytest.raises(InvalidLayout, match="float8_e4m3fnuz has no kvlink type"):
        described(array("LBHNC").astype(ml_dtypes.float8_e4m3fnuz), "LBHNC")


def test_check_and_compile_list_every_difference() -> None:
    source, target = numbers("LBHNC"), numbers("LBNHC", dtype=DType.BF16)
    findings = Layout.check([source], [target])
    assert [(f.subject, f.field, f.destination, f.source) for f in findings] == [
        ("layer 3 kv", "dtype", "bf16", "f16"),
        ("layer 5 kv", "dtype", "bf16", "f16"),
    ]
    with pytest.raises(kvlink.Incompatible, match="destination bf16, source f16") as caught:
        Plan.compile([source], [target])
    assert caught.value.findings == findings
    assert Layout.check([source], [numbers("BLNHC")]) == ()


def test_a_plan_copies_between_arrays_of_unlike_orders() -> None:
    source, target = array("LBHNC"), array("BNLHC")
    source[:] = np.random.default_rng(1).random(source.shape)
    plan = Plan.compile([described(source, "LBHNC")], [described(target, "BNLHC")])
    assert plan is not None
    spans = plan.expand([[5, 1]], [[0, 7]], 2 * TOKENS)
    src, dst = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    for s in spans:
        dst[s.dst_offset : s.dst_offset + s.len] = src[s.src_offset : s.src_offset + s.len]
    assert (target[[0, 7]] == source[:, [5, 1]].transpose(1, 3, 0, 2, 4)).all()
    assert (target[1:7] == 0).all()
    table = spans.numpy()
    assert len(spans) == len(table) > 64
    assert spans[-1] == spans[len(spans) - 1] == tuple(table[-1])
    assert int(table["len"].sum()) == 2 * source[:, 0].nbytes
