"""Motion into files: skeleton and body, tables, viewer, films."""
