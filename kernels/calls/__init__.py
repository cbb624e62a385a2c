"""What a caller calls: attention over ranks, its plan and reasons, and the calls beside it."""
