"""All routes of the service `workspaces`, in the order in which they are described."""

from . import invitations, keys, limits, machines, runs, spaces, trail, usage

ROUTES = [
    *spaces.ROUTES,
    *invitations.ROUTES,
    *usage.ROUTES,
    *limits.ROUTES,
    *runs.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *trail.ROUTES,
]
