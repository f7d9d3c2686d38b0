"""AWS Lambda's event source mappings, outside AWS."""

__version__ = "0.1.0"
