"""One file a command; `app.cli` loads only the one that is asked for."""
