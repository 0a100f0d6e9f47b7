"""WebDataset shards: their names, members, captions and indexes."""
