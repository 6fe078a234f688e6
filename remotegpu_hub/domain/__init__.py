"""The street: the verbs, in the order in which the data flows. It knows no web, no hub, no remote system."""
