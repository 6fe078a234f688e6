"""Door 1, inside the hub process: the spawn page and the spawners."""
