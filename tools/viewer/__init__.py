"""Show a file in a browser: index.html as it is, served from the repository's root, or all of it in one page."""
