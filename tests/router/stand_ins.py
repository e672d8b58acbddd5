"""Stand-ins for what vLLM's MoRIIOConnector and its example proxy import: vLLM's own files run without the rest of vLLM.

What is only named by types, or never reached here, is made up when it is asked for.
"""

import importlib.abc
import importlib.machinery
import logging
import sys
import types

import zmq


class _Anything(type):
    """A class whose attributes are such classes."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: finds what the source tree does not have."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mori", "torch", "vllm"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Module(spec.name)
        if spec.name == "vllm.logger":
            module.init_logger = logging.getLogger
        if spec.name == "vllm.utils.network_utils":
            module.make_zmq_path = lambda scheme, host, port: f"{scheme}://{host}:{port}"
            module.make_zmq_socket = _socket
        return module

    def exec_module(self, module):
        pass


def _socket(ctx, path, socket_type, bind=None):
    socket = ctx.socket(socket_type)
    socket.bind(path) if bind else socket.connect(path)
    return socket


def install(source):
    """Makes the vLLM files below a folder importable."""
    sys.path.insert(0, source)
    sys.meta_path.append(_Finder())
