"""Source pictures to records: decoding, groups, splits, captions."""
