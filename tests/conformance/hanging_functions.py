"""A function whose init code never ends."""

import signal

signal.pause()
