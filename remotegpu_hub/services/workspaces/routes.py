"""All routes of the service `workspaces`, in the order in which they are described."""

from . import catalogue, keys, limits, machines, runs, spaces, trail

ROUTES = [
    *spaces.ROUTES,
    *limits.ROUTES,
    *runs.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *catalogue.ROUTES,
    *trail.ROUTES,
]
