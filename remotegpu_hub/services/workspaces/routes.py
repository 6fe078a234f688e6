"""All routes of the service `workspaces`, in the order in which they are described."""

from . import budgets, keys, limits, machines, requests, runs, spaces, trail

ROUTES = [
    *spaces.ROUTES,
    *limits.ROUTES,
    *requests.ROUTES,
    *budgets.ROUTES,
    *runs.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *trail.ROUTES,
]
