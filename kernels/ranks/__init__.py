"""Talk between ranks: counted collectives, agreement, moments."""
