"""All routes of the service `workspaces`, in the order in which they are described."""

from . import events, keys, limits, machines, runs, spaces, trail, webhooks

ROUTES = [
    *spaces.ROUTES, *limits.ROUTES, *runs.ROUTES, *keys.ROUTES, *machines.ROUTES, *trail.ROUTES, *events.ROUTES,
    *webhooks.ROUTES,
]  # fmt: skip
