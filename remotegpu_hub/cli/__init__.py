"""The words of the `remotegpu` command, a module for each kind of thing. It is a door: it parses, opens one
transaction, calls one verb of the street, and prints. It works on the hub's machine, on the hub's database."""
