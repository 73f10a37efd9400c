"""The web application as the store meets it: checkouts, batches, reads and refusals."""
