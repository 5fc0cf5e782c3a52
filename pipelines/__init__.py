"""How it is run: recipes, command line, replay, server."""
