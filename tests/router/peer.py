"""A ROUTER socket of libzmq: prints a line for every message. Arguments: port (0: any), and options.

heartbeats: libzmq asks for signs of life every 100 ms, and hangs up after 300 ms without. big: every message is answered
with two frames of a megabyte and an empty one.
"""

import json
import sys

import msgpack
import zmq

port, *options = sys.argv[1:]
socket = zmq.Context().socket(zmq.ROUTER)
socket.linger = 0
if "heartbeats" in options:
    socket.heartbeat_ivl = 100
    socket.heartbeat_timeout = 300
bound = socket.bind_to_random_port("tcp://127.0.0.1") if port == "0" else socket.bind(f"tcp://127.0.0.1:{port}")
print(bound if port == "0" else port, flush=True)
while True:
    identity, *frames = socket.recv_multipart()
    if "big" in options:
        socket.send_multipart([identity, b"x" * (1 << 20), b"", b"y" * (1 << 20)])
    beat = [msgpack.unpackb(f) for f in frames]
    print(json.dumps([identity.decode(), *beat]), flush=True)
