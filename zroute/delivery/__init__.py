"""How much, in what order, what was lost: bookkeeping. Pure: no socket, no reactor."""
