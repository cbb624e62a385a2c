"""How tiles travel over ranks: ring, Ulysses, gather."""
