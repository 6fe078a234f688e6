"""All routes of the service `workspaces`, in the order in which they are described."""

from . import glance, keys, limits, machines, runs, spaces, trail

ROUTES = [*glance.ROUTES, *spaces.ROUTES, *limits.ROUTES, *runs.ROUTES, *keys.ROUTES, *machines.ROUTES, *trail.ROUTES]
