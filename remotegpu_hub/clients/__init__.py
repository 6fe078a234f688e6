"""Remote systems and the machine itself, each behind one module that owns its time-outs and maps foreign errors to our
tree. Nothing here knows a table or a rule."""
