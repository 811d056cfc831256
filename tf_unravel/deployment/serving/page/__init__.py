"""The page that the server shows: index.html, its style and its modules, as they are, and the answers that they ask."""
