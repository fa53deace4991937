"""The dashboard: static files of our own and of two libraries, and how they are served. It uses the public HTTP interface alone."""
