"""Ready functions: plain Lambda handlers that a config can name."""
