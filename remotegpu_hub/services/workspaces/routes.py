"""All routes of the service `workspaces`, in the order in which they are described."""

from . import keys, limits, machines, making, people, runs, spaces, trail, ways

ROUTES = [
    *people.ROUTES,
    *spaces.ROUTES,
    *limits.ROUTES,
    *runs.ROUTES,
    *making.ROUTES,
    *ways.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *trail.ROUTES,
]
