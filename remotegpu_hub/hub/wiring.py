"""What `configure(c)` put into the hub, and whether all of it is still there."""

from typing import Any

SERVICES = ("workspaces", "billing")


def overwritten(hub: Any) -> list[str]:
    """What the loaded configuration has no more of ours, a sentence each."""
    problems = []
    spawner = hub.spawner_class
    if "RemoteGPUMixin" not in [base.__name__ for base in spawner.__mro__]:
        problems.append(f"spawner_class became {spawner.__name__} after configure(c): nothing is checked or billed.")
    problems += missing_services(hub)
    if not any(role.get("name") == "remotegpu-services" for role in hub.load_roles):
        problems.append("the role remotegpu-services is gone: load_roles was assigned after configure(c).")
    return problems


def missing_services(hub: Any) -> list[str]:
    """Which of our services the hub does not have, a sentence each."""
    names = [service.get("name") for service in hub.services]
    return [
        f"the service {name} is gone: c.JupyterHub.services was assigned after configure(c). Move configure(c) to the "
        "last line."
        for name in SERVICES
        if name not in names
    ]
