/* Layouts and plans: every function, every error, and spans that are counted by hand. */
#include "support.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t layers[LAYERS] = {0, 1};
static const uint64_t bytes = (uint64_t)LAYERS * 64 * BLOCK_TOKENS * 256;
static const kvlink_group_t paged = {.kind = KVLINK_GROUP_PAGED, .block_tokens = BLOCK_TOKENS, .num_blocks = 64};
static const kvlink_record_t record = {
    .layers = layers, .num_layers = LAYERS, .role = "mla", .element_bytes = 256};

static kvlink_layout_desc_t desc(void)
{
    kvlink_layout_desc_t d = {.struct_size = sizeof d, .model = "tiny", .region_bytes = &bytes, .num_regions = 1,
                              .groups = &paged, .num_groups = 1, .records = &record, .num_records = 1};
    return d;
}

static kvlink_status_t create(const kvlink_layout_desc_t *d)
{
    kvlink_layout_t *layout = NULL;
    kvlink_status_t status = kvlink_layout_create(d, &layout);
    if (status == KVLINK_OK)
        CHECK_OK(kvlink_layout_destroy(layout));
    else
        CHECK(layout == NULL);
    return status;
}

static void a_layout_says_what_it_understood(void)
{
    kvlink_layout_t *layout = make_layout(64, 256, KVLINK_DTYPE_OPAQUE), *again = NULL;
    char *json, small[4] = "abc";
    size_t len = 0, again_len = 0;
    CHECK_ERROR(kvlink_layout_explain(layout, NULL, 0, &len), KVLINK_E_BUFFER_TOO_SMALL, "0 bytes");
    CHECK(len > 0);
    CHECK_STATUS(kvlink_layout_explain(layout, small, sizeof small, NULL), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK(strcmp(small, "abc") == 0);
    json = malloc(len + 1);
    CHECK_STATUS(kvlink_layout_explain(layout, json, len, NULL), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_OK(kvlink_layout_explain(layout, json, len + 1, NULL));
    CHECK_EQ(strlen(json), len);
    CHECK_HAS(json, "\"tiny\"");
    /* What it says makes the same layout again. */
    CHECK_OK(kvlink_layout_from_json(json, len, &again));
    CHECK_OK(kvlink_layout_explain(again, json, len + 1, &again_len));
    CHECK_EQ(again_len, len);
    free(json);
    CHECK_OK(kvlink_layout_destroy(again));
    CHECK_OK(kvlink_layout_destroy(layout));
}

static void regions_and_groups_are_copied_out_all_or_nothing(void)
{
    kvlink_layout_t *layout = make_layout(64, 256, KVLINK_DTYPE_OPAQUE);
    uint64_t region = 7;
    kvlink_group_t group = {.kind = 99};
    size_t count = 0;
    CHECK_ERROR(kvlink_layout_regions(layout, NULL, 0, &count), KVLINK_E_BUFFER_TOO_SMALL, "0 entries", "1 are");
    CHECK_EQ(count, 1);
    CHECK_OK(kvlink_layout_regions(layout, &region, 1, &count));
    CHECK_EQ(region, bytes);
    CHECK_STATUS(kvlink_layout_groups(layout, &group, 0, &count), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_EQ(group.kind, 99);
    CHECK_OK(kvlink_layout_groups(layout, &group, 1, &count));
    CHECK_EQ(count, 1);
    CHECK_EQ(group.kind, KVLINK_GROUP_PAGED);
    CHECK_EQ(group.block_tokens, BLOCK_TOKENS);
    CHECK_EQ(group.num_blocks, 64);
    CHECK_EQ(group.context_size, 1);
    CHECK_OK(kvlink_layout_destroy(layout));
}

static void every_form_of_tensor_makes_a_layout(void)
{
    kvlink_group_t groups[2] = {{.kind = KVLINK_GROUP_PAGED, .block_tokens = 16, .num_blocks = 8},
                                {.kind = KVLINK_GROUP_SLOTS, .block_tokens = 1, .num_blocks = 4}};
    uint64_t regions[4] = {1 << 20, 1 << 20, 1 << 20, 1 << 20};
    kvlink_attention_t attention = {.layers = layers, .num_layers = 2, .heads = 8, .num_heads = 8, .key_dim = 16,
                                    .value_dim = 16, .dtype = KVLINK_DTYPE_BF16};
    kvlink_record_t index = {.layers = layers, .num_layers = 2, .role = "indexer", .region = 1, .element_bytes = 132};
    kvlink_section_t conv[3] = {{8, 16, 0, 8}, {8, 16, 0, 8}, {8, 16, 0, 8}};
    kvlink_state_t state = {.layers = layers, .num_layers = 2, .group = 1, .region = 2, .slot_stride = 65536,
                            .layer_stride = 4 * 65536, .state_offset = 8192, .conv = conv, .num_conv = 3,
                            .conv_rows = 3, .conv_dtype = KVLINK_DTYPE_BF16, .state = {8, 256, 0, 8},
                            .state_dtype = KVLINK_DTYPE_F32};
    kvlink_axis_t axis = {.name = "channel", .extent = 64};
    kvlink_extent_t extent = {.begin = 0, .len = 64, .stride = 2};
    kvlink_part_t part = {.region = 3, .block_stride = 16 * 128, .token_stride = 128, .extents = &extent};
    kvlink_tensor_t tensor = {.layer = 5, .dtype = KVLINK_DTYPE_F16, .role = "extra", .axes = &axis, .num_axes = 1,
                              .parts = &part, .num_parts = 1};
    kvlink_layout_desc_t d = {.struct_size = sizeof d, .region_bytes = regions, .num_regions = 4, .groups = groups,
                              .num_groups = 2, .attention = &attention, .num_attention = 1, .records = &index,
                              .num_records = 1, .states = &state, .num_states = 1, .tensors = &tensor,
                              .num_tensors = 1};
    CHECK_OK(create(&d));

    attention.planes = 2;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "attention[0].planes", "2", "0..=1");
    attention.planes = 0;
    attention.order = "LBHNX";
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_LAYOUT, "LBHNX", "LBHNC");
    attention.order = NULL;
    attention.dtype = 10;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "attention[0].dtype", "10", "0..=9");
    attention.dtype = KVLINK_DTYPE_BF16;
    attention.group = 2;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_LAYOUT, "attention[0].group", "2", "2 groups");
    attention.group = 0;
    index.dtype = UINT32_MAX;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "records[0].dtype", "4294967295");
    index.dtype = KVLINK_DTYPE_OPAQUE;
    state.conv_rows_outside = 7;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "states[0].conv_rows_outside", "7");
    state.conv_rows_outside = 0;
    state.conv_dtype = 11;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "states[0].conv", "11");
    state.conv_dtype = KVLINK_DTYPE_BF16;
    state.state_dtype = 12;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "states[0].state", "12");
    state.state_dtype = KVLINK_DTYPE_F32;
    state.reserved = 1;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_ARGUMENT, "states[0].reserved", "1");
    state.reserved = 0;
    axis.common = 3;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "tensors[0].axes[0].common", "3");
    axis.common = 1;
    CHECK_OK(create(&d));
    axis.reserved = 5;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_ARGUMENT, "tensors[0].axes[0].reserved", "5");
    axis.reserved = 0;
    tensor.dtype = 13;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "tensors[0].dtype", "13");
    tensor.dtype = KVLINK_DTYPE_F16;
    groups[1].kind = 3;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "groups[1].kind", "3", "0..=2");
    groups[1].kind = KVLINK_GROUP_SLOTS;
    groups[0].reach = 4;
    CHECK_ERROR(create(&d), KVLINK_E_UNKNOWN_ENUM, "groups[0].reach", "4");
    groups[0].reach = KVLINK_REACH_FULL;
    groups[0].reserved = 6;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_ARGUMENT, "groups[0].reserved", "6");
    groups[0].reserved = 0;
    d.reserved = 9;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_ARGUMENT, "kvlink_layout_desc_t.reserved", "9");
    d.reserved = 0;
    CHECK_OK(create(&d));
}

static void a_layout_that_contradicts_itself_is_refused(void)
{
    kvlink_layout_desc_t d = desc();
    uint64_t small = bytes - 1;
    kvlink_record_t twice[2];
    kvlink_group_t group = paged;
    kvlink_layout_t *layout = NULL;
    char long_name[200];
    d.region_bytes = &small;
    CHECK_STATUS(create(&d), KVLINK_E_INVALID_LAYOUT);
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_LAYOUT, "131071", "layer 1 mla");
    d = desc();
    twice[0] = twice[1] = record;
    d.records = twice;
    d.num_records = 2;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_LAYOUT, "layer 0 mla", "twice");
    d = desc();
    group.block_tokens = 0;
    d.groups = &group;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_LAYOUT, "block_tokens 0");
    d = desc();
    memset(long_name, 'm', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    d.model = long_name;
    CHECK_ERROR(create(&d), KVLINK_E_LIMIT, "199", "128");
    d.model = "\xff\xfe";
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_ARGUMENT, "model", "UTF-8");
    d = desc();
    d.num_records = SIZE_MAX / 2;
    CHECK_ERROR(create(&d), KVLINK_E_INVALID_ARGUMENT, "records", "entries");
    CHECK_ERROR(kvlink_layout_from_json("{", 1, &layout), KVLINK_E_INVALID_LAYOUT, "JSON");
    CHECK_ERROR(kvlink_layout_from_json("\xff", 1, &layout), KVLINK_E_INVALID_ARGUMENT, "json", "byte 0");
    CHECK_ERROR(kvlink_layout_from_json(NULL, 0, &layout), KVLINK_E_INVALID_LAYOUT, "JSON");
    CHECK(layout == NULL);
}

static void incompatible_layouts_are_explained(void)
{
    kvlink_layout_t *f16 = make_layout(64, 256, KVLINK_DTYPE_F16), *bf16 = make_layout(32, 256, KVLINK_DTYPE_BF16);
    const kvlink_layout_t *src = f16, *dst = bf16, *both[2];
    kvlink_finding_t findings[4];
    kvlink_plan_t *plan = NULL;
    size_t count = 99;
    CHECK_OK(kvlink_layout_check(&src, 1, &src, 1, 0, NULL, 0, &count));
    CHECK_EQ(count, 0);
    CHECK_STATUS(kvlink_layout_check(&src, 1, &dst, 1, 0, NULL, 0, &count), KVLINK_E_INCOMPATIBLE);
    CHECK(count > 0 && count <= 4);
    memset(findings, 0xee, sizeof findings);
    CHECK_ERROR(kvlink_layout_check(&src, 1, &dst, 1, 0, findings, 4, &count), KVLINK_E_INCOMPATIBLE, "mla", "dtype",
                "f16", "bf16");
    CHECK_HAS(findings[0].subject, "mla");
    CHECK_HAS(findings[0].field, "dtype");
    CHECK_HAS(findings[0].destination, "bf16");
    CHECK_HAS(findings[0].source, "f16");
    CHECK_STATUS(kvlink_layout_check(&src, 1, &dst, 1, 0, NULL, 4, &count), KVLINK_E_NULL_POINTER);
    CHECK_ERROR(kvlink_layout_check(&src, 1, &dst, 1, 1, NULL, 0, &count), KVLINK_E_INVALID_ARGUMENT, "rank 1",
                "1 ranks");
    CHECK_STATUS(kvlink_layout_check(&src, 0, &dst, 1, 0, NULL, 0, &count), KVLINK_E_INCOMPATIBLE);
    CHECK_ERROR(kvlink_plan_create(&src, 1, &dst, 1, 0, 0, &plan), KVLINK_E_INCOMPATIBLE, "dtype");
    CHECK_ERROR(kvlink_plan_create(&src, 1, &src, 1, 1, 0, &plan), KVLINK_E_INVALID_ARGUMENT, "source rank 1");
    CHECK_ERROR(kvlink_plan_create(&src, 1, &src, 1, 0, 2, &plan), KVLINK_E_INVALID_ARGUMENT, "destination rank 2");
    CHECK(plan == NULL);
    both[0] = f16;
    both[1] = NULL;
    CHECK_STATUS(kvlink_plan_create(both, 2, &src, 1, 0, 0, &plan), KVLINK_E_NULL_POINTER);
    CHECK_OK(kvlink_layout_destroy(f16));
    CHECK_OK(kvlink_layout_destroy(bf16));
}

static void a_plan_expands_to_the_spans_that_one_would_write_down(void)
{
    kvlink_layout_t *s = make_layout(64, 256, KVLINK_DTYPE_OPAQUE), *d = make_layout(32, 256, KVLINK_DTYPE_OPAQUE);
    const kvlink_layout_t *src = s, *dst = d;
    kvlink_plan_t *plan = NULL;
    uint32_t from[3] = {5, 6, 9}, to[3] = {1, 2, 3};
    kvlink_blocks_t sb = {from, 3, 0}, db = {to, 3, 0};
    kvlink_plan_request_t q = {.struct_size = sizeof q, .token_total = 12, .source_blocks = &sb,
                               .num_source_blocks = 1, .destination_blocks = &db, .num_destination_blocks = 1};
    kvlink_span_t spans[8];
    size_t count = 0, len = 0;
    char text[256];
    uint64_t block = BLOCK_TOKENS * 256;
    CHECK_OK(kvlink_plan_create(&src, 1, &dst, 1, 0, 0, &plan));
    CHECK(plan != NULL);
    /* Layouts may go; the plan keeps what it needs. */
    CHECK_OK(kvlink_layout_destroy(s));
    CHECK_OK(kvlink_layout_destroy(d));
    CHECK_ERROR(kvlink_plan_expand(plan, &q, NULL, 0, &count), KVLINK_E_BUFFER_TOO_SMALL, "0 entries", "4 are");
    CHECK_EQ(count, 4);
    CHECK_STATUS(kvlink_plan_expand(plan, &q, spans, 3, &count), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK_OK(kvlink_plan_expand(plan, &q, spans, 8, &count));
    /* Blocks 5 and 6 are neighbours on both sides: one span. Block 9 is another. Twice, for two layers. */
    CHECK_EQ(count, 4);
    CHECK_EQ(spans[0].src_offset, 5 * block);
    CHECK_EQ(spans[0].dst_offset, 1 * block);
    CHECK_EQ(spans[0].len, 2 * block);
    CHECK_EQ(spans[0].src_region, 0);
    CHECK_EQ(spans[0].dst_region, 0);
    CHECK_EQ(spans[1].src_offset, 9 * block);
    CHECK_EQ(spans[1].dst_offset, 3 * block);
    CHECK_EQ(spans[1].len, block);
    CHECK_EQ(spans[2].src_offset, (64 + 5) * block);
    CHECK_EQ(spans[2].dst_offset, (32 + 1) * block);
    /* A part of it: one layer, tokens 5..8. */
    q.token_begin = 5;
    q.token_end = 8;
    q.layer_first = 1;
    q.layer_count = 1;
    CHECK_OK(kvlink_plan_expand(plan, &q, spans, 8, &count));
    CHECK_EQ(count, 1);
    CHECK_EQ(spans[0].src_offset, (64 + 6) * block + 256);
    CHECK_EQ(spans[0].dst_offset, (32 + 2) * block + 256);
    CHECK_EQ(spans[0].len, 3 * 256);
    q.token_begin = 8;
    CHECK_OK(kvlink_plan_expand(plan, &q, NULL, 0, &count));
    CHECK_EQ(count, 0);
    q.token_begin = 0;
    q.token_end = 0;
    to[2] = 32;
    CHECK_ERROR(kvlink_plan_expand(plan, &q, spans, 8, &count), KVLINK_E_INVALID_BLOCKS, "32");
    /* One layer still. A hole in the destination takes nothing; one in the source leaves bytes missing. */
    to[2] = KVLINK_NO_BLOCK;
    CHECK_OK(kvlink_plan_expand(plan, &q, spans, 8, &count));
    CHECK_EQ(count, 1);
    to[2] = 3;
    from[2] = KVLINK_NO_BLOCK;
    CHECK_STATUS(kvlink_plan_expand(plan, &q, spans, 8, &count), KVLINK_E_INVALID_BLOCKS);
    from[2] = 9;
    db.count = 2;
    CHECK_STATUS(kvlink_plan_expand(plan, &q, spans, 8, &count), KVLINK_E_INVALID_BLOCKS);
    db.count = 3;
    q.num_source_blocks = 0;
    CHECK_STATUS(kvlink_plan_expand(plan, &q, spans, 8, &count), KVLINK_E_INVALID_BLOCKS);
    q.num_source_blocks = 1;
    q.token_begin = 13;
    CHECK_STATUS(kvlink_plan_expand(plan, &q, spans, 8, &count), KVLINK_E_INVALID_BLOCKS);
    q.token_begin = 0;
    q.reserved = 3;
    CHECK_ERROR(kvlink_plan_expand(plan, &q, spans, 8, &count), KVLINK_E_INVALID_ARGUMENT,
                "kvlink_plan_request_t.reserved", "3");
    CHECK_STATUS(kvlink_plan_explain(plan, text, 3, &len), KVLINK_E_BUFFER_TOO_SMALL);
    CHECK(len > 3 && len < sizeof text);
    CHECK_OK(kvlink_plan_explain(plan, text, len + 1, NULL));
    CHECK_HAS(text, "rank 0");
    CHECK_OK(kvlink_plan_destroy(plan));
}

static void ranks_with_nothing_to_exchange_have_no_plan(void)
{
    /* A record is the same on all ranks: each destination reads from one source only. */
    kvlink_layout_t *l = make_layout(64, 256, KVLINK_DTYPE_OPAQUE);
    const kvlink_layout_t *two[2], *one;
    kvlink_plan_t *plan;
    int made = 0;
    uint32_t r;
    one = two[0] = two[1] = l;
    for (r = 0; r < 2; r++) {
        plan = (kvlink_plan_t *)&made;
        CHECK_OK(kvlink_plan_create(two, 2, &one, 1, r, 0, &plan));
        made += plan != NULL;
        CHECK_OK(kvlink_plan_destroy(plan));
    }
    CHECK_EQ(made, 1);
    CHECK_OK(kvlink_layout_destroy(l));
}

int main(void)
{
    RUN(a_layout_says_what_it_understood);
    RUN(regions_and_groups_are_copied_out_all_or_nothing);
    RUN(every_form_of_tensor_makes_a_layout);
    RUN(a_layout_that_contradicts_itself_is_refused);
    RUN(incompatible_layouts_are_explained);
    RUN(a_plan_expands_to_the_spans_that_one_would_write_down);
    RUN(ranks_with_nothing_to_exchange_have_no_plan);
    return 0;
}
