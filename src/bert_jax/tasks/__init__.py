"""The tasks of the paper and own tables: their files, examples, scores and results, all in one registry."""
