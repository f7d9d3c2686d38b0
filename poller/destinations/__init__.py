"""Where batches go that are given up: one kind of destination a file, each a `poller.ports.Destination`."""
