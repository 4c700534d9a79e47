"""Floor 7: the verbs as functions; later the server around them."""
