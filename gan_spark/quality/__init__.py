"""How good generated images are, and what follows from it."""
