"""All pages for admins of the hub."""

from typing import Any

from . import admin_pages, all_spaces, audit_pages, catalog_pages, overview_pages, policy_pages

ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    *overview_pages.ROUTES,
    *all_spaces.ROUTES,
    *admin_pages.ROUTES,
    *catalog_pages.ROUTES,
    *policy_pages.ROUTES,
    *audit_pages.ROUTES,
]
