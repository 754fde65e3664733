"""Images in the lake, as datasets: sources, ingest, the schema, and the reader of every rank."""
