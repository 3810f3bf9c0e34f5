"""A real speech task that needs no model hub: a spoken corpus, a tiny teacher, and the study that distils it."""
