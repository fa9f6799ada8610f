"""The published book: `site` runs studies, renders `pages` from their records, checks it all."""
