"""A worker of vLLM's MoRIIOConnector as far as it speaks: its own listeners and senders, with stand-ins for the rest of vLLM.

Arguments: the folder of vLLM's source, the role, its handshake port, its notify port. Takes a command as a line of JSON, and
answers with one.
"""

import json
import sys
import threading

import stand_ins

source, role, handshake_port, notify_port = sys.argv[1:]
stand_ins.install(source)

from vllm.distributed.kv_transfer.kv_connector.v1.moriio import moriio_common as common  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.moriio import moriio_connector as connector  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.moriio import moriio_engine as engine  # noqa: E402

common.set_role(common.ROLE.PRODUCER if role == "prefill" else common.ROLE.CONSUMER)

wrapper = engine.MoRIIOWrapper()
wrapper.notify_port = int(notify_port)
# What is unpacked by MoRI stays packed.
wrapper.register_remote_engine = bytes.hex
wrapper.async_wait_reqid()

metadata = common.MoRIIOAgentMetadata(
    engine_id=f"127.0.0.1:{handshake_port}",
    agent_metadata=b"\x96EDESC",
    kv_caches_base_addr=[1 << 40, 7],
    num_blocks=128,
    block_len=65536,
    attn_backend_name="FLASH_ATTN",
    kv_head_layouts={"l1": [8, 16, 256, 65536, 256, 2048, 0, 32768]},
    mamba_state_layouts={"l0": [1, 2, 3]},
    attention_block_sizes={"l1": 16},
)
layers = {"l1": [b"\x9fMDESC"], "l0": [b"\x9fCONV", b"\x9fSSM"]}
listening = threading.Event()
listener = threading.Thread(
    target=connector.MoRIIOConnectorWorker._moriio_handshake_listener,
    args=(metadata, listening, int(handshake_port), 0, 0, layers),
    daemon=True,
)
listener.start()
listening.wait()

worker = object.__new__(connector.MoRIIOConnectorWorker)
worker.moriio_wrapper = wrapper
worker.layer_name_to_remote_kv_cache_metadata, worker.remote_moriio_metadata = {}, {}
worker.local_kv_cache_metadata, worker.remote_kv_cache_metadata = [], []

scheduler = object.__new__(connector.MoRIIOConnectorScheduler)
scheduler.paths, scheduler._global_dp_rank = {}, 3


def state():
    """What others have said, and whether it can still hear."""
    with wrapper.lock:
        return {
            "released": [list(ack) for ack in wrapper.done_req_ids],
            "allocated": {t: [i.block_ids, i.decode_dp_rank] for t, i in wrapper.done_remote_allocate_req_dict.items()},
            "written": wrapper.done_write_cache_req_ids,
            "failed": wrapper.failed_write_cache_req_ids,
            "partly": wrapper._write_done_counts,
            "alive": wrapper.notify_thread.is_alive() and listener.is_alive(),
        }


def meet(port):
    """What another worker says about itself."""
    worker._moriio_handshake("127.0.0.1", port, 1, "other", 0, 0)
    found = worker.remote_moriio_metadata["other"]
    said = {name: getattr(found, name) for name in found.__struct_fields__ if name != "agent_metadata"}
    regions = {name: [r.hex() for r in all] for name, all in worker.layer_name_to_remote_kv_cache_metadata["other"].items()}
    return {**said, "agent_metadata": found.agent_metadata.hex(), "layers": regions, "order": list(regions)}


def notify(port, transfer, kind=None, fields=None):
    """Tells another worker something."""
    wrapper.send_notify(transfer, "127.0.0.1", port, message_type=kind, message_fields=fields)


def blocks(port, request, transfer, ids):
    """Tells a prefill worker where the cache goes, as the decode side's scheduler does."""
    scheduler.send_notify_block(request, transfer, ids, "127.0.0.1", port)


def release(port, transfer):
    """Releases a prefill worker's blocks, as the decode side's scheduler does."""
    scheduler._send_transfer_release(transfer, "127.0.0.1", port)


print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
