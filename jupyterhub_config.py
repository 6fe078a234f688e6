"""A hub that runs JupyterLab with GPUs on one machine: `jupyterhub -f jupyterhub_config.py`, as root."""

import sys

from remotegpu_hub.configure import configure

c = get_config()  # noqa: F821

c.JupyterHub.bind_url = "http://127.0.0.1:8000/"
c.Authenticator.allow_all = True  # PAM: who has an account on this machine may log in
c.Authenticator.admin_users = {"root"}
c.RemoteGPU.currency = "USD"
c.RemoteGPU.images = {
    "local:jupyterlab": {"display_name": "JupyterLab", "cmd": [sys.executable, "-m", "jupyterhub.singleuser"]},
}
configure(c)
