"""The paper's tasks: how each is read, what it asks of a model, and what is done with the answers."""
