"""Other libraries' own tests, run on attnkit: a second examiner. Nothing of theirs is copied; their folder is given."""
