"""What the corpus commands share: jobs that restart, tables, captions, media checks, tar shards, the command line."""
