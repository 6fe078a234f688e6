"""Stands before the real one in the path of every process that tests start: building its grammar takes 1.3 s of each start
of a hub or a server, and nothing there is an IRI."""

raise ImportError("left out by the tests")
