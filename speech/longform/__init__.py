"""From sentences to hours: planner, chunk engine, journal, joins, writer, subtitles, loudness."""
