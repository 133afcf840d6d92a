"""Charts as values (`specs`), drawn twice: `svg` for the page, `paper` (matplotlib) for files."""
