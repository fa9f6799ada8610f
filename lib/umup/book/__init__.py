"""The published book: `site` runs the studies, renders `pages` from their records and checks it."""
