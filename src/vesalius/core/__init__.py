"""Floor 1: the nouns of the house. numpy only, never torch."""
