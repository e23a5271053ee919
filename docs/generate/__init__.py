"""Pages that are written from the source code when the site is built."""
