"""Configuration of the demo hub. Started by `python -m demo`, which says in env vars where and on which ports."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import offering
from demo.logins import ADMIN, LOGINS, DemoAuthenticator
from remotegpu_hub.configure import configure

c = get_config()  # noqa: F821 - traitlets puts it there
state = Path(os.environ["REMOTEGPU_DEMO_STATE"])

c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['REMOTEGPU_DEMO_PORT']}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{os.environ['REMOTEGPU_DEMO_HUB_PORT']}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{os.environ['REMOTEGPU_DEMO_PROXY_PORT']}"
c.ConfigurableHTTPProxy.command = [str(Path(sys.executable).parent / "configurable-http-proxy")]
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")
c.JupyterHub.db_url = f"sqlite:///{state}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(state / "cookie-secret")

c.JupyterHub.authenticator_class = DemoAuthenticator
c.DemoAuthenticator.password = (state / "password").read_text().strip()
c.DemoAuthenticator.allowed_users = {login.name for login in LOGINS}
c.DemoAuthenticator.admin_users = {ADMIN}
c.JupyterHub.load_roles = [
    {
        "name": "remotegpu-admins",
        "users": [ADMIN],
        "scopes": ["custom:remotegpu:admin", "custom:remotegpu:write", "custom:remotegpu:read", "access:services"],
    }
]
token = state / "admin-token"
if token.exists():
    c.JupyterHub.api_tokens = {token.read_text().strip(): ADMIN}

c.RemoteGPU.insecure_demo = True
c.RemoteGPU.simulated_gpus = [] if offering.real_gpus() else offering.SIMULATED_GPUS
c.RemoteGPU.images = offering.IMAGES
c.RemoteGPU.currency = offering.CURRENCY
c.RemoteGPU.default_cpu = "0.25"
c.RemoteGPU.default_memory = "512M"
c.RemoteGPU.personal_quota = {"cpu": "1", "memory": "2G", "environments": 2}
c.RemoteGPU.personal_budget = "50.00"
c.RemoteGPU.port_ranges = {"tensorboard": (26006, 26025), "custom": (28000, 28019)}
c.RemoteGPU.webhook_networks = ["127.0.0.0/8"]  # a receiver to try is on this machine too
c.RemoteGPU.runtime_file = str(state / "remotegpu-runtime.json")
c.DemoSpawner.home_root = str(state / "homes")
configure(c)
