"""All routes of the service `workspaces`, in the order in which they are described."""

from . import (
    budgets,
    catalogue,
    events,
    invitations,
    keys,
    limits,
    machines,
    making,
    people,
    requests,
    runs,
    spaces,
    trail,
    usage,
    ways,
    webhooks,
)

ROUTES = [
    *people.ROUTES,
    *spaces.ROUTES,
    *invitations.ROUTES,
    *usage.ROUTES,
    *limits.ROUTES,
    *requests.ROUTES,
    *budgets.ROUTES,
    *runs.ROUTES,
    *making.ROUTES,
    *ways.ROUTES,
    *keys.ROUTES,
    *machines.ROUTES,
    *catalogue.ROUTES,
    *trail.ROUTES,
    *events.ROUTES,
    *webhooks.ROUTES,
]
