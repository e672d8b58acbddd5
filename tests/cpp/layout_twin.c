/* The description of layout.cpp, field by field in C: its layout as JSON. */
#include <kvlink.h>
#include <stdio.h>
#include <stdlib.h>

static void ok(kvlink_status_t status)
{
    char text[1024] = "";
    if (status == KVLINK_OK)
        return;
    (void)kvlink_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s\n", text);
    exit(EXIT_FAILURE);
}

int main(void)
{
    static char json[1 << 16];
    const uint32_t attention_layers[] = {3, 1}, record_layers[] = {2}, state_layers[] = {0, 4};
    const uint64_t regions[] = {1 << 20, 1 << 20, 1 << 20, 1 << 20};
    const kvlink_group_t groups[] = {
        {.kind = KVLINK_GROUP_PAGED, .block_tokens = 16, .num_blocks = 8, .reach = KVLINK_REACH_WINDOW, .reach_tokens = 48,
         .context_size = 2, .context_rank = 1, .context_interleave = 4},
        {.kind = KVLINK_GROUP_SLOTS, .block_tokens = 1, .num_blocks = 4}};
    const kvlink_attention_t attention = {
        .layers = attention_layers, .num_layers = 2, .role = "kv2", .order = "BLNHC", .offset = 256, .heads = 8,
        .first_head = 4, .num_heads = 2, .key_dim = 16, .value_dim = 8, .planes = 1, .value_region = 1,
        .value_offset = 512, .kernel_tokens = 8, .dtype = KVLINK_DTYPE_F16};
    const kvlink_record_t record = {.layers = record_layers, .num_layers = 1, .role = "mla", .region = 2, .offset = 128,
                                    .block_stride = 16 * 80, .token_stride = 80, .elements = 18,
                                    .dtype = KVLINK_DTYPE_F32};
    const kvlink_section_t conv[] = {{4, 8, 2, 2}, {4, 16, 2, 2}};
    const kvlink_state_t state = {
        .layers = state_layers, .num_layers = 2, .group = 1, .region = 3, .conv_offset = 64, .state_offset = 4096,
        .slot_stride = 8192, .layer_stride = 4 * 8192, .conv = conv, .num_conv = 2, .conv_rows = 3,
        .conv_rows_outside = 1, .conv_dtype = KVLINK_DTYPE_BF16, .state = {4, 32, 2, 2},
        .state_dtype = KVLINK_DTYPE_F32};
    const kvlink_axis_t axes[] = {{.name = "head", .extent = 6}, {.name = "channel", .extent = 8, .common = 1}};
    const kvlink_extent_t low[] = {{0, 2, 8}, {0, 8, 1}}, high[] = {{3, 2, 8}, {0, 8, 1}};
    kvlink_part_t parts[2][2] = {
        {{.region = 2, .offset = 65536, .block_stride = 256, .token_stride = 16, .extents = low},
         {.region = 2, .offset = 131072, .block_stride = 256, .token_stride = 16, .tile_tokens = 4, .tile_stride = 64,
          .extents = high}}};
    kvlink_tensor_t tensors[2] = {
        {.layer = 5, .dtype = KVLINK_DTYPE_U8, .role = "own", .axes = axes, .num_axes = 2, .parts = parts[0],
         .num_parts = 2}};
    const kvlink_layout_desc_t desc = {
        .struct_size = sizeof desc, .model = "all forms", .region_bytes = regions, .num_regions = 4, .groups = groups,
        .num_groups = 2, .attention = &attention, .num_attention = 1, .records = &record, .num_records = 1,
        .states = &state, .num_states = 1, .tensors = tensors, .num_tensors = 2};
    kvlink_layout_t *layout;

    for (int i = 0; i < 2; i++) {
        parts[1][i] = parts[0][i];
        parts[1][i].offset += 4096;
    }
    tensors[1] = tensors[0];
    tensors[1].layer = 6;
    tensors[1].parts = parts[1];
    ok(kvlink_layout_create(&desc, &layout));
    ok(kvlink_layout_explain(layout, json, sizeof json, NULL));
    printf("LAYOUT %s\n", json);
    ok(kvlink_layout_destroy(layout));
    return 0;
}
