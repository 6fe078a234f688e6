"""The service `workspaces`: who may do what, what is offered; owns sync and reconcile."""
