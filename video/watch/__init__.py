"""``longtake watch``: the minute of a long film that a question asks for."""
