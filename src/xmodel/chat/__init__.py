"""A conversation with a model in the terminal: turns, commands, lines of the terminal's width."""
