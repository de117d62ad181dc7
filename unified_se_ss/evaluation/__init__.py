"""From separated signals to metrics, tables and a report."""
