//! One suite that every transport passes: agents, requests and what may go wrong between them. A further transport adds a
//! line at the end of this file.

#[path = "../common/mod.rs"]
mod common;
#[path = "../mori/mod.rs"]
mod mori;
#[path = "../nixl/mod.rs"]
mod nixl;
#[path = "../tools/mod.rs"]
mod tools;

mod flat;
mod load;
mod process;
mod rank;
mod raw;
mod transport;

mod cancel;
mod data;
mod death;
mod deregister;
mod destroy;
mod edge;
mod handshake;
mod hostile;
mod idle;
mod lease;
mod limits;
mod many;
mod notify;
mod streams;

/// Not a test of its own: the other process of those that need one.
#[test]
fn child() {
    process::child();
}

macro_rules! suite {
    ($name:ident, $transport:expr, $($module:ident { $($case:ident),* $(,)? })*) => {
        mod $name {
            $(mod $module {
                $(#[test]
                fn $case() {
                    if $transport.available() {
                        crate::$module::$case($transport);
                    }
                })*
            })*
        }
    };
}

macro_rules! conformance {
    ($($name:ident: $transport:expr;)*) => {
        $(suite! { $name, $transport,
            data {
                hybrid_pages_to_more_ranks,
                hybrid_pages_to_fewer_ranks,
                heads_are_sliced_out_of_tokens,
                keys_and_values_in_planes,
                small_blocks_into_large,
                large_blocks_into_small,
                pipeline_stages,
                context_parallel_ranks,
                windows_rings_and_holes,
                speculative_rows,
                random_cases,
            }
            edge { no_tokens, a_fully_cached_prefix, ranks_with_nothing_to_move }
            many { spans_in_one_read, spans_in_one_write, a_small_read_beside_large_ones, transfers_from_many_threads }
            notify { in_order, after_the_data_of_a_read, after_the_data_of_a_write, the_largest_and_one_byte_more }
            cancel { by_the_sink_of_reads, by_the_source_of_writes, of_an_offer, of_an_accept }
            lease { expires_while_the_source_reuses_its_blocks, expires_while_the_sink_stands_still }
            deregister { at_the_sink_of_reads, at_the_source_of_reads, at_the_sink_of_writes, at_the_source_of_writes }
            death {
                of_the_source_of_reads,
                of_the_sink_of_reads,
                of_the_source_of_writes,
                of_the_sink_of_writes,
                a_source_that_hangs,
                a_sink_that_hangs,
                a_writer_that_hangs,
                restarted_under_the_same_address,
                a_peer_that_hangs_before_the_handshake,
            }
            handshake { incompatible_layouts, require_not_satisfied, require_not_satisfied_by_the_other }
            limits { of_transfers, of_offers_and_accepts, of_peers, of_parked_writes, of_parked_bytes, of_events, nothing_is_left_behind }
            destroy { the_sink_of_reads, the_source_of_reads, the_sink_of_writes, the_source_of_writes }
            hostile { garbage, half_open_connections, lies, a_request_before_its_data_connection, listeners }
            idle { agents_use_no_time }
        })*
    };
}

conformance! {
    shm: crate::transport::SHM;
    cma: crate::transport::CMA;
    tcp: crate::transport::TCP;
    nixl_ucx: crate::transport::NIXL_UCX;
    nixl_ucx_tcp: crate::transport::NIXL_UCX_TCP;
    mori_rdma: crate::transport::MORI_RDMA;
    mori_rdma_4: crate::transport::MORI_RDMA_4;
    cma_spinning: crate::transport::CMA_SPINNING;
    tcp_spinning: crate::transport::TCP_SPINNING;
    nixl_ucx_spinning: crate::transport::NIXL_UCX_SPINNING;
    nixl_ucx_tcp_spinning: crate::transport::NIXL_UCX_TCP_SPINNING;
}
