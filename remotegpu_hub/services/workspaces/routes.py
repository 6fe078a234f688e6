"""All routes of the service `workspaces`, in the order in which they are described."""

from . import catalogue, dry_run, keys, limits, machines, runs, spaces, trail

ROUTES = [
    *spaces.ROUTES,
    *limits.ROUTES,
    *runs.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *catalogue.ROUTES,
    *dry_run.ROUTES,
    *trail.ROUTES,
]
