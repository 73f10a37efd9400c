"""Everything that crosses a process boundary: HTTP bodies, queue messages, database tables."""
