"""All routes of the service `workspaces`, in the order in which they are described."""

from . import invitations, keys, limits, machines, making, people, runs, spaces, trail, usage, ways

ROUTES = [
    *people.ROUTES,
    *spaces.ROUTES,
    *invitations.ROUTES,
    *usage.ROUTES,
    *limits.ROUTES,
    *runs.ROUTES,
    *making.ROUTES,
    *ways.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *trail.ROUTES,
]
