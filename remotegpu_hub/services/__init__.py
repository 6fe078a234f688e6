"""Hub-managed services: each authorises by the database, opens one transaction a request, and runs its ticks."""
