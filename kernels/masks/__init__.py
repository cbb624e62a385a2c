"""The mask algebra: which query sees which key."""
