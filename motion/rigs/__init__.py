"""Other programs' skeletons: bone tables, rest poses, files, and the proof that a file holds the motion."""
