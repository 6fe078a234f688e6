#!/usr/bin/env python3
"""Give a test node simulated GPUs, as NVIDIA's device plugin does: device_plugin.py --root KUBELET_ROOT ...

Serves the kubelet's device plugin API v1beta1 on KUBELET_ROOT/device-plugins/RESOURCE.sock and registers with kubelet.sock
beside it, again whenever a restarted kubelet has made a new one. The kubelet keeps that folder in /var/lib/kubelet, whatever
its own --root-dir says. One process serves one resource; run another for nvidia.com/mig-1g.10gb, say.

--replicas 2 offers each GPU twice, as UUID::0 and UUID::1, like time-slicing. --control FILE names GPUs by their index and is
read every half second: {"unhealthy": [0, 3], "gone": [5]}. No file is no fault; a file that makes no sense changes nothing.
"""

import argparse
import json
import signal
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

API = "v1beta1"
TICK = 0.5
MESSAGES = {
    "Empty": "",
    "DevicePluginOptions": "bool pre_start_required, bool get_preferred_allocation_available",
    "RegisterRequest": "string version, string endpoint, string resource_name, DevicePluginOptions options",
    "Device": "string ID, string health",
    "ListAndWatchResponse": "Device* devices",
    "ContainerAllocateRequest": "string* devicesIDs",
    "AllocateRequest": "ContainerAllocateRequest* container_requests",
    "EnvsEntry": "string key, string value",
    "ContainerAllocateResponse": "EnvsEntry* envs",
    "AllocateResponse": "ContainerAllocateResponse* container_responses",
    "ContainerPreferredAllocationRequest": "string* available_deviceIDs, string* must_include_deviceIDs, int32 allocation_size",
    "PreferredAllocationRequest": "ContainerPreferredAllocationRequest* container_requests",
    "ContainerPreferredAllocationResponse": "string* deviceIDs",
    "PreferredAllocationResponse": "ContainerPreferredAllocationResponse* container_responses",
}
"""The API's messages with the fields that are used here, numbered from 1; a star marks a repeated one. On the wire a map
is a repeated entry of key and value, and what an Empty does not know is skipped."""


def build(messages):
    """The classes of these messages, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="deviceplugin.proto", package=API, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (kind, field) in enumerate(map(str.split, filter(None, fields.split(", "))), start=1):
            label = "LABEL_REPEATED" if "*" in kind else "LABEL_OPTIONAL"
            made = message.field.add(name=field, number=number, label=label)
            if (kind := kind.rstrip("*")) in messages:
                made.type, made.type_name = made.TYPE_MESSAGE, f".{API}.{kind}"
            else:
                made.type = made.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{API}.{name}")) for name in messages}


M = build(MESSAGES)
encode = methodcaller("SerializeToString")


def serve(path, name, methods):
    """Serve a gRPC service, {method: (its request, what answers it)}; a method named ...Watch answers in a stream."""
    handlers = {}
    for method, (request, answer) in methods.items():
        kind = grpc.unary_stream_rpc_method_handler if method.endswith("Watch") else grpc.unary_unary_rpc_method_handler
        handlers[method] = kind(answer, M[request].FromString, encode)
    generic = grpc.method_handlers_generic_handler(f"{API}.{name}", handlers)
    server = grpc.server(ThreadPoolExecutor(max_workers=8), handlers=[generic])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server


def mark(path):
    """What tells a socket from the one made after it; an inode alone is soon used again."""
    found = path.stat() if path.exists() else None
    return found and (found.st_ino, found.st_ctime_ns)


class Plugin:
    def __init__(self, root, resource, count, replicas=1, control=None):
        self.resource, self.control = resource, control
        self.kubelet = root / "device-plugins" / "kubelet.sock"
        self.socket = self.kubelet.with_name(resource.replace("/", "-") + ".sock")
        gpus = [f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, f'{resource}/{index}')}" for index in range(count)]
        suffixes = [""] if replicas == 1 else [f"::{replica}" for replica in range(replicas)]
        self.index_of = {gpu + suffix: index for index, gpu in enumerate(gpus) for suffix in suffixes}
        self.health = dict.fromkeys(self.index_of, "Healthy")
        self.options = M["DevicePluginOptions"](get_preferred_allocation_available=True)
        self.server = self.served = self.registered = None

    def tick(self):
        """Read the control file; then serve and register where a socket is not the one it was."""
        self.read_control()
        if (kubelet := mark(self.kubelet)) is None:
            return
        if mark(self.socket) != self.served or self.server is None:
            self.close()
            self.server = self.serve()
            self.served = mark(self.socket)
        if kubelet != self.registered:
            self.register()
            self.registered = kubelet
            print(f"registered {len(self.index_of)} {self.resource} with {self.kubelet}", flush=True)

    def read_control(self):
        try:
            read = json.loads(self.control.read_text()) if self.control and self.control.exists() else {}
            unhealthy, gone = (set(map(int, read.get(key, ()))) for key in ("unhealthy", "gone"))
            there = {name: index for name, index in self.index_of.items() if index not in gone}
            self.health = {name: "Unhealthy" if there[name] in unhealthy else "Healthy" for name in there}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            print(f"{self.control} changes nothing: {error}", flush=True)

    def register(self):
        names = {"version": API, "endpoint": self.socket.name, "resource_name": self.resource}
        with grpc.insecure_channel(f"unix:{self.kubelet}") as channel:
            call = channel.unary_unary(f"/{API}.Registration/Register", encode)
            call(M["RegisterRequest"](options=self.options, **names), timeout=5)

    def close(self):
        if self.server:
            self.server.stop(None).wait()
        self.socket.unlink(missing_ok=True)
        self.server = self.registered = None

    def serve(self):
        methods = {
            "GetDevicePluginOptions": ("Empty", lambda *_: self.options),
            "ListAndWatch": ("Empty", self.list_and_watch),
            "Allocate": ("AllocateRequest", self.allocate),
            "PreStartContainer": ("Empty", lambda *_: M["Empty"]()),
            "GetPreferredAllocation": ("PreferredAllocationRequest", self.prefer),
        }
        return serve(self.socket, "DevicePlugin", methods)

    def list_and_watch(self, request, context):
        told = None
        while context.is_active():
            if told != self.health:
                told = self.health
                yield M["ListAndWatchResponse"](devices=[{"ID": name, "health": told[name]} for name in told])
            time.sleep(TICK / 5)

    def allocate(self, request, context):
        answers = []
        for container in request.container_requests:
            wanted = set(container.devicesIDs)
            if unknown := wanted - set(self.health):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unknown devices: {', '.join(sorted(unknown))}")
            gpus = dict.fromkeys(name.partition("::")[0] for name in self.index_of if name in wanted)
            envs = {"NVIDIA_VISIBLE_DEVICES": ",".join(gpus), "REMOTEGPU_SIMULATED_GPUS": "1"}
            answers.append({"envs": [{"key": key, "value": value} for key, value in envs.items()]})
        return M["AllocateResponse"](container_responses=answers)

    def prefer(self, request, context):
        """The lowest index first; with replicas, the GPU with the most of them free."""
        answers = []
        for container in request.container_requests:
            chosen = list(container.must_include_deviceIDs)
            free = [name for name in self.index_of if name in set(container.available_deviceIDs) - set(chosen)]
            while free and len(chosen) < container.allocation_size:
                ((most, _),) = Counter(self.index_of[name] for name in free).most_common(1)
                chosen.append(next(name for name in free if self.index_of[name] == most))
                free.remove(chosen[-1])
            answers.append({"deviceIDs": chosen})
        return M["PreferredAllocationResponse"](container_responses=answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--resource", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--control", type=Path)
    plugin = Plugin(**vars(parser.parse_args()))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    while not stop.is_set():
        try:
            plugin.tick()
        except (OSError, RuntimeError, grpc.RpcError) as error:  # the kubelet is coming or going
            reason = error.details() if isinstance(error, grpc.Call) else error
            print(f"not registered, trying again: {reason}", flush=True)
        stop.wait(TICK)
    plugin.close()


if __name__ == "__main__":
    main()
