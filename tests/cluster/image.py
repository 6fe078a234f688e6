#!/usr/bin/env python3
"""Write a tiny OCI image as a docker archive: image.py pause|base ARCHIVE NAME.

pause: a static program that sleeps for ever. base: empty mount points only; a pod that mounts the
host's /usr, /lib, /lib64 and a virtual environment read-only can run jupyterhub-singleuser in it.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PAUSE = "#include <unistd.h>\n#include <signal.h>\nstatic void q(int s){_exit(0);}\nint main(){signal(SIGTERM,q);signal(SIGINT,q);for(;;)pause();}\n"


def layer(kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if kind == "pause":
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder, "pause.c")
                source.write_text(PAUSE)
                subprocess.run(["gcc", "-Os", "-static", "-o", f"{folder}/pause", str(source)], check=True)
                tar.add(f"{folder}/pause", arcname="pause")
        else:
            for name in ("usr", "lib", "lib64", "bin", "etc", "home", "home/jovyan", "tmp", "opt", "root", "var"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name in ("tmp", "home/jovyan") else 0o755
                tar.addfile(entry)
            for name, text in {
                "etc/passwd": "root:x:0:0::/root:/bin/sh\njovyan:x:1000:100::/home/jovyan:/bin/sh\n",
                "etc/group": "root:x:0:\ntty:x:5:\nusers:x:100:\n",
            }.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def main(kind, archive, name):
    data = layer(kind)
    digest = hashlib.sha256(data).hexdigest()
    labels = {"org.opencontainers.image.title": kind, "com.nvidia.cuda.version": "12.4"}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
        "config": {
            "Entrypoint": ["/pause"] if kind == "pause" else None,
            "Env": ["PATH=/usr/bin:/bin"],
            "Labels": labels,
        },
    }
    body = json.dumps(config).encode()
    config_name = hashlib.sha256(body).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as tar:
        for filename, content in {config_name: body, "layer.tar": data, "manifest.json": manifest}.items():
            entry = tarfile.TarInfo(filename)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(*sys.argv[1:4])
